"""The Debian package: the program, and the locked wheels of all that it needs, for each Python that it may meet.

The virtual environment is built by postinst on the host, from what is in the package; only this build needs network,
and that once: what it downloads stays in build/wheels. The same sources make the same package, byte by byte, under the
same versions of dpkg and hatchling ($SOURCE_DATE_EPOCH, else the time of the last commit).

`python -m deploy.debian.build` prints the path of the package. `make deb` says it with what it needs installed.
"""

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from email.utils import formatdate
from pathlib import Path

from packaging.markers import Marker

from deploy.debian import manual
from deploy.locked import REPOSITORY, Locked, described, running
from deploy.version import epoch, version

PYTHONS = ("3.11", "3.12", "3.13")
"""Debian 12, Ubuntu 24.04, Debian 13. `Depends` in control says the same bounds."""

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's name of an architecture: the one in a wheel's name."""

GLIBC = 36
"""The minor version of the oldest C library, Debian 12's; `Depends` in control says the same."""

_SOURCE = Path(__file__).parent
_BUILD = REPOSITORY / "build"
_DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
_UNITS = ("correlator.service", "correlator-gateway.service")
_EXAMPLES = (
    *("caddy", "compose-fleet.yaml", "compose.yaml", "grafana", "correlator.sysusers", *_UNITS),
    *("grants-doorbell.sql", "grants-password.sql", "grants.sql"),
    *("mosquitto", "nats", "nginx", "node-red", "otel-collector", "prometheus"),
)
_NOT_FOR_A_HOST = shutil.ignore_patterns("__pycache__", "*_test.yml")


def build(folder: Path, architecture: str, asked: str | None = None, *, named: str | None = None) -> Path:
    """Write the package to `folder`. Raises CalledProcessError where a program that does a part of it fails.

    `asked`: a version for the package in place of `package_version`. `named`: the version in the name of the file; by
    default the release's without the commit, so a later build replaces it.
    """
    program = version()
    given = asked or package_version(program, _day("%Y%m%d%H%M%S"))
    environ = os.environ | {"SOURCE_DATE_EPOCH": str(epoch())}
    wheels = download(architecture)
    with tempfile.TemporaryDirectory(prefix="correlator-deb-") as scratch:
        root = Path(scratch) / "root"
        home = root / "usr/lib/correlator"
        shutil.copytree(wheels, home / "wheels", ignore=shutil.ignore_patterns(".*"))
        _pip(
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(home / "wheels"),
            str(REPOSITORY),
            **environ,
        )
        (home / "requirements.txt").write_text(_requirements(home / "wheels", program))
        _lay_out(root, given)
        _control(root, architecture, given)
        for path in [root, *root.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        folder.mkdir(parents=True, exist_ok=True)
        package = folder / f"correlator_{named or asked or program.partition('+')[0]}_{architecture}.deb"
        # The wheels, which are nearly all of it, are compressed already.
        command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", str(root)]
        subprocess.run([*command, str(package)], check=True, stdout=subprocess.DEVNULL, env=environ)
    return package


def package_version(program: str, time_of_commit: str) -> str:
    """The version as apt compares it: that of a later commit is higher, and that of the release the highest."""
    release, _, commit = program.partition("+")
    return f"{release}~{time_of_commit}+{commit}" if commit else release


def download(architecture: str) -> Path:
    """The folder of the locked wheels for every Python; from the index only where it is not whole yet."""
    releases = running()
    asked = "\n".join([*(release.requirement() for release in releases), *PYTHONS, str(GLIBC)])
    folder = _BUILD / "wheels" / f"{architecture}-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
    if folder.exists():
        return folder
    unfinished = Path(tempfile.mkdtemp(prefix=f"{architecture}-", dir=_made(folder.parent)))
    try:
        for python in PYTHONS:
            _download(releases, python, architecture, unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # else another build was as quick
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _download(releases: list[Locked], python: str, architecture: str, folder: Path) -> None:
    # pip evaluates markers for the Python that runs it, not for the target.
    there = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    needed = [one for one in releases if not one.marker or Marker(one.marker).evaluate(there)]
    machine = MACHINES[architecture]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC, 4, -1)]
    platforms += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(one._replace(marker="").requirement() for one in needed))
        file.flush()
        _pip(
            *("download", "--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", str(folder)),
            *("--python-version", python, "--implementation", "cp", "--abi", f"cp{python.replace('.', '')}"),
            *("--abi", "abi3", "--abi", "none", *(part for one in platforms for part in ("--platform", one))),
            *("--requirement", file.name),
        )


def _requirements(wheels: Path, program: str) -> str:
    """What postinst installs: each release with the hashes of the wheels that are here, and no other."""
    hashes: dict[str, list[str]] = {}
    for wheel in sorted(wheels.glob("*.whl")):
        name = wheel.name.split("-")[0].replace("_", "-").replace(".", "-").lower()
        hashes.setdefault(name, []).append(hashlib.sha256(wheel.read_bytes()).hexdigest())
    own = Locked(described()["name"], program, "", (), frozenset())
    return "".join(release.requirement(hashes[release.name]) + "\n" for release in [*running(), own])


def _lay_out(root: Path, version: str) -> None:
    """Everything but the wheels, where it belongs on the host."""
    deploy = REPOSITORY / "deploy"
    for unit in _UNITS:
        _copy(deploy / unit, root / "usr/lib/systemd/system" / unit)
    _copy(deploy / "correlator.sysusers", root / "usr/lib/sysusers.d/correlator.conf")
    # postinst writes the files beside these folders: dpkg asks about an edited conffile, and fails without a terminal.
    for folder in ("conf.d", "gateway.d"):
        _made(root / "etc/correlator" / folder)
    _made(root / "usr/bin").joinpath("correlator").symlink_to("../lib/correlator/venv/bin/correlator")
    day = _day("%Y-%m-%d")
    _compressed(root / "usr/share/man/man1/correlator.1.gz", manual.command_page(version, day))
    _compressed(root / "usr/share/man/man5/correlator.toml.5.gz", manual.configuration_page(version, day))
    for shell, place in manual.COMPLETIONS.items():
        _written(root / place, manual.completion(shell))
    doc = root / "usr/share/doc/correlator"
    _copy(_SOURCE / "copyright", doc / "copyright")
    _compressed(doc / "changelog.gz", _changelog(version))
    documents(doc)
    _copy(_SOURCE / "lintian-overrides", root / "usr/share/lintian/overrides/correlator")


def documents(doc: Path) -> None:
    """Copy the documents to this folder, and what their links lead to: examples (as deploy/ too) and pictures."""
    for name in _DOCUMENTS:
        _written(doc / name, (REPOSITORY / name).read_text().replace("](LICENSE)", "](copyright)"))
    shutil.copytree(REPOSITORY / "docs", doc / "docs", ignore=_NOT_FOR_A_HOST)
    for name in _EXAMPLES:
        source = REPOSITORY / "deploy" / name
        if source.is_dir():
            shutil.copytree(source, doc / "examples" / name, ignore=_NOT_FOR_A_HOST)
        else:
            _copy(source, doc / "examples" / name)
    (doc / "deploy").symlink_to("examples")
    for picture in (REPOSITORY / "benchmarks/results").glob("*.svg"):
        _copy(picture, doc / "benchmarks/results" / picture.name)


def _control(root: Path, architecture: str, version: str) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    size = sum((path.stat().st_size + 1023) // 1024 for path in files)
    control = (_SOURCE / "control").read_text()
    for word, value in {"@VERSION@": version, "@ARCHITECTURE@": architecture, "@SIZE@": str(size)}.items():
        control = control.replace(word, value)
    _written(root / "DEBIAN/control", control)
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n"
        for path in files
    ]
    _written(root / "DEBIAN/md5sums", "".join(sums))
    for name in ("triggers", "postinst", "prerm", "postrm"):
        _copy(_SOURCE / name, root / "DEBIAN" / name)


def _changelog(version: str) -> str:
    return (
        f"correlator ({version}) unstable; urgency=medium\n\n  * CHANGELOG.md lists what changed.\n\n"
        f" -- The correlator's developers <correlator@localhost>  {formatdate(epoch())}\n"
    )


def _day(form: str) -> str:
    """The time of the build, as strftime(3) writes it."""
    return time.strftime(form, time.gmtime(epoch()))


def _pip(*arguments: str, **environ: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    subprocess.run(command, check=True, env=os.environ | environ, stdout=sys.stderr)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _copy(source: Path, target: Path) -> None:
    shutil.copy(source, _made(target.parent) / target.name)


def _written(target: Path, text: str) -> None:
    (_made(target.parent) / target.name).write_text(text)


def _compressed(target: Path, text: str) -> None:
    (_made(target.parent) / target.name).write_bytes(gzip.compress(text.encode(), mtime=0))


def main() -> None:
    here = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout.strip()
    parser = argparse.ArgumentParser(description="Build the Debian package.")
    parser.add_argument("--architecture", choices=MACHINES, default=here)
    parser.add_argument("--version", help="of the package; by default the program's with the time of the commit")
    parser.add_argument("--directory", type=Path, default=_BUILD)
    given = parser.parse_args()
    print(build(given.directory, given.architecture, given.version))


if __name__ == "__main__":
    main()
