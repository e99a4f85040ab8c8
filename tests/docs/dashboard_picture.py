"""The dashboard of Grafana as a page: the panels of its file at their places, with made-up values.

No package registry has Grafana, so this draws what the file says: titles, places, units, legends, stacks and colours of
values. The rest only resembles Grafana.
"""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parents[2] / "deploy" / "grafana" / "correlator.json"
ROWS = 29
"""The units of height that are shown, from the top."""

UNIT_X, UNIT_Y, GAP = 50, 30, 6
"""Pixels of one unit of a place in the file, and between two panels."""

WIDTH, HEIGHT = 24 * UNIT_X + GAP, ROWS * UNIT_Y + GAP
COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9")
POINTS = 120
HOURS = ("08:00", "09:00", "10:00", "11:00", "12:00", "13:00", "14:00")
STYLE = """
body { margin: 0; background: #111217; color: #ccccdc; font: 12px sans-serif; position: relative }
section { position: absolute; background: #181b1f; border: 1px solid #2c3235; border-radius: 2px }
section { box-sizing: border-box }
h2 { font-size: 13px; margin: 6px 8px 0; font-weight: 500 }  h3 { position: absolute; font-size: 15px; margin: 6px 0 }
.stats { display: flex; gap: 6px; padding: 6px 8px; text-align: center }  .plain { font-size: 16px; padding: 24px 8px }
.stats div { flex: 1; border-radius: 2px; color: white; padding: 8px }  .stats b { display: block; font-size: 26px }
.legend { position: absolute; bottom: 3px; left: 8px; right: 4px; line-height: 14px }
.legend span { margin-right: 8px; white-space: nowrap }
text { fill: #9a9aa8; font-size: 11px }  line { stroke: #2c3235 }  path { fill: none; stroke-width: 1.5 }
"""


class Series(NamedTuple):
    """A made-up series: `level` with waves of `swing`, as integers if `whole`. `legend` fits the file's format."""

    legend: str
    level: float
    swing: float = 0.0
    whole: bool = False

    def values(self) -> list[float]:
        phase = sum(self.legend.encode()) % 7
        waves = (
            0.6 * math.sin(n / 9 + phase) + 0.3 * math.sin(n / 3.7 + 2 * phase) + 0.1 * math.sin(1.9 * n)
            for n in range(POINTS)
        )
        found = [max(0.0, self.level + self.swing * wave) for wave in waves]
        return [float(round(value)) for value in found] if self.whole else found


VALUES: dict[str, tuple[Series, ...]] = {
    "State": tuple(Series(name, 1) for name in ("ready", "database", "broker", "configuration")),
    "Version": (Series("0.1.0 · Python 3.13.5 · uvloop · asyncmy", 1),),
    "In memory": (
        *(Series("running", 14, 5, True), Series("completed", 168, 20, True)),
        *(Series("failed", 6, 3, True), Series("stalled", 0.3, 1, True)),
    ),
    "Ended within an hour": (
        *(Series("completed", 38, 12, True), Series("failed", 2, 2, True), Series("cancelled", 0.4, 1, True)),
    ),
    "Duration, 19 of 20 are shorter": (Series("failover", 262, 40), Series("backup", 840, 90)),
    "Late and overdue jobs": (Series("late", 1, 1.4, True), Series("overdue", 0.2, 0.8, True)),
    "How good forecasts were, last 200 jobs": (
        *(Series("ended before p90, appliance-1", 0.91, 0.02), Series("median error, appliance-1", 0.12, 0.03)),
    ),
    "Operations with a forecast, and without": (
        *(Series("3 completed runs or more: yes", 9), Series("3 completed runs or more: no", 3)),
    ),
    "Rows": (Series("read", 42, 18), Series("late", 1.5, 1.5)),
    "From a row's time to its publication": (Series("half", 0.032, 0.006), Series("99 of 100", 0.11, 0.04)),
    "Lag and gaps": (Series("lag", 0.05, 0.03), Series("oldest gap", 0.4, 0.7)),
}


def page() -> str:
    """Return the content of the page. Raises: `KeyError`, `ValueError` if a panel has no values here that fit it."""
    panels = [panel for panel in json.loads(FILE.read_text())["panels"] if panel["gridPos"]["y"] < ROWS]
    return f"<style>{STYLE}</style>{''.join(map(_panel, panels))}"


def _panel(panel: dict[str, Any]) -> str:
    place = panel["gridPos"]
    width, height = place["w"] * UNIT_X - GAP, place["h"] * UNIT_Y - GAP
    at = f"left:{place['x'] * UNIT_X + GAP}px;top:{place['y'] * UNIT_Y + GAP}px"
    title = html.escape(panel["title"])
    if panel["type"] == "row":
        return f'<h3 style="{at}">⌄ {title}</h3>'
    series = VALUES[panel["title"]]
    formats = [target["legendFormat"] for target in panel["targets"]]
    for one in series:
        if not any(re.fullmatch(re.sub(r"\\\{\\\{\w+\\\}\\\}", ".+", re.escape(form)), one.legend) for form in formats):
            raise ValueError(f"{panel['title']}: {one.legend} fits none of {formats}")
    content = _stats(panel, series) if panel["type"] == "stat" else _lines(panel, series, width, height)
    return f'<section style="{at};width:{width}px;height:{height}px"><h2>{title}</h2>{content}</section>'


def _stats(panel: dict[str, Any], series: tuple[Series, ...]) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    if "mappings" not in defaults:
        return "".join(f'<div class="plain">{html.escape(one.legend)}</div>' for one in series)
    words = defaults["mappings"][0]["options"]
    shown = [(one.legend, words[str(int(one.level))]) for one in series]
    colours = {"green": "#37872d", "red": "#c4162a"}
    parts = (f'<div style="background:{colours[w["color"]]}">{name}<b>{w["text"]}</b></div>' for name, w in shown)
    return f'<div class="stats">{"".join(parts)}</div>'


def _lines(panel: dict[str, Any], series: tuple[Series, ...], width: int, height: int) -> str:
    custom, unit = panel["fieldConfig"]["defaults"]["custom"], panel["fieldConfig"]["defaults"]["unit"]
    rows: list[list[float]] = []
    for one in series:
        below = rows[-1] if rows and custom["stacking"]["mode"] == "normal" else [0.0] * POINTS
        rows.append([value + floor for value, floor in zip(one.values(), below, strict=True)])
    left, right, top, bottom = 52, width - 10, 12, height - 80
    step = _step(max(max(row) for row in rows))
    count = math.ceil(max(max(row) for row in rows) / step) or 1
    parts = []
    for n in range(count + 1):
        y = bottom - (bottom - top) * n / count
        label = f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{_label(n * step, unit)}</text>'
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.0f}" y2="{y:.0f}"/>{label}')
    for n, hour in enumerate(HOURS[:-1]):
        x = left + (right - left) * n / (len(HOURS) - 1)
        parts.append(f'<text x="{x:.0f}" y="{bottom + 16}">{hour}</text>')
    for colour, row in reversed([*zip(COLOURS, rows, strict=False)]):
        xs = [left + (right - left) * n / (POINTS - 1) for n in range(POINTS)]
        points = " L".join(
            f"{x:.1f},{bottom - (bottom - top) * value / (step * count):.1f}" for x, value in zip(xs, row, strict=True)
        )
        if custom["fillOpacity"]:
            area = f"M{left},{bottom} L{points} L{right},{bottom} Z"
            parts.append(f'<path d="{area}" style="fill:{colour};fill-opacity:{custom["fillOpacity"] / 100}"/>')
        parts.append(f'<path d="M{points}" stroke="{colour}"/>')
    named = '<span><b style="color:{}">━</b> {}</span>'
    names = (named.format(colour, html.escape(one.legend)) for colour, one in zip(COLOURS, series, strict=False))
    return (
        f'<svg width="{width}" height="{height - 50}">{"".join(parts)}</svg><div class="legend">{" ".join(names)}</div>'
    )


def _step(most: float) -> float:
    """Return the distance of lines of which three to five make a scale: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(most / 4))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * 4 >= most)


def _label(value: float, unit: str) -> str:
    match unit:
        case "s" if 0 < value < 1:
            return f"{value * 1000:.0f} ms"
        case "s":
            return f"{value / 60:g} min" if value >= 60 and value % 60 == 0 else f"{value:g} s"
        case "percentunit":
            return f"{value * 100:.0f}%"
        case "reqps":
            return f"{value:g} req/s"
    return f"{value:g}"
