"""How things grow, as SVG pictures."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness import Picture


def draw(picture: Picture, folder: Path) -> None:
    """`folder`/`picture.file`.svg. The same points give the same bytes."""
    import matplotlib as mpl  # noqa: PLC0415 - only `make bench` installs it

    mpl.use("svg")
    from matplotlib import pyplot  # noqa: PLC0415
    from matplotlib.ticker import EngFormatter, NullFormatter  # noqa: PLC0415

    mpl.rcParams.update({"svg.hashsalt": picture.file, "font.size": 10, "svg.fonttype": "none"})
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for curve in picture.curves:
        axes.plot([x for x, _ in curve.points], [y for _, y in curve.points], marker="o", label=curve.name)
    if picture.log_x:
        axes.set_xscale("log")
        axes.set_xticks(sorted({x for curve in picture.curves for x, _ in curve.points}))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylim(0, 1.1 * max(y for curve in picture.curves for _, y in curve.points))
    axes.set(title=picture.title, xlabel=picture.x, ylabel=picture.y)
    axes.grid(alpha=0.3)
    if len(picture.curves) > 1:
        axes.legend(frameon=False)
    figure.savefig(folder / f"{picture.file}.svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
