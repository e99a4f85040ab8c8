"""`make release` of the last commit, twice in different surroundings, and each of its files in a bare system."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from deploy.debian.build import package_version
from deploy.image import architecture
from deploy.version import commit, epoch, version
from tests.support.paths import REPOSITORY
from tests.support.servers import program
from tests.support.system.installations import add_backend
from tests.support.system.roots import EMULATED, Root

pytestmark = pytest.mark.timeout(4200)

SURROUNDINGS = ({"umask": 0o022, "TZ": "UTC", "LC_ALL": "C"}, {"umask": 0o077, "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8"})


def released(clone: Path, umask: int, **environ: str) -> Path:
    """The folder of the release, from a clone of its own; what has been downloaded is used again."""
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True, timeout=120)
    (REPOSITORY / "build/wheels").mkdir(parents=True, exist_ok=True)
    (clone / "build").mkdir()
    (clone / "build/wheels").symlink_to(REPOSITORY / "build/wheels")
    given = os.environ | {"SOURCE_DATE_EPOCH": "1"} | environ
    command = [sys.executable, "-m", "deploy.release"]
    ended = subprocess.run(
        command, cwd=clone, env=given, umask=umask, capture_output=True, text=True, timeout=1800, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return clone / "build/release"


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [released(tmp_path_factory.mktemp("clone") / "sources", **one) for one in SURROUNDINGS]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built(releases: list[Path]) -> str:
    """The version, which names the last commit: the clones have no changes."""
    return version(releases[0].parent.parent)


@pytest.fixture
def bare(releases: list[Path], tmp_path: Path) -> Root:
    """A Debian 13 that has the files of the release in /tmp."""
    return with_files(Root("trixie", tmp_path), releases[0])


def with_files(root: Root, release: Path) -> Root:
    for file in release.iterdir():
        root.put(f"/tmp/{file.name}", file)
    return root


def test_two_releases_of_a_commit_have_the_same_files(releases: list[Path], built: str):
    names, again = ([file.name for file in sorted(folder.iterdir())] for folder in releases)
    assert names == again
    python, program, debian = f"joblog_correlator-{built}", f"correlator-{built}", f"correlator_{built}"
    assert set(names) == {
        *(f"{python}-py3-none-any.whl", f"{python}.tar.gz", f"{program}.cdx.json", f"{program}.md", "SHA256SUMS"),
        *(f"{debian}_amd64.deb", f"{debian}_arm64.deb", f"correlator-client-{built}.tgz"),
        f"{program}-{architecture()}.image.tar.gz",
    }
    differ = [name for name in names if len({(folder / name).read_bytes() for folder in releases}) > 1]
    assert differ == []


def test_checksums_and_bill_of_materials_are_those_of_the_release(bare: Root, releases: list[Path], built: str):
    checked = bare.run("cd /tmp; sha256sum --check --strict SHA256SUMS").stdout.splitlines()
    assert len(checked) == len(list(releases[0].iterdir())) - 1
    bill = json.loads((releases[0] / f"correlator-{built}.cdx.json").read_text())
    assert bill["metadata"]["component"]["version"] == built


@pytest.mark.parametrize("kind", ["-py3-none-any.whl", ".tar.gz"])
def test_pip_installs_what_names_its_commit(kind: str, bare: Root, built: str, tmp_path: Path):
    with tarfile.open(tmp_path / "backend.tar", "w") as archive:
        add_backend(archive)
    bare.put("/tmp/backend.tar", tmp_path / "backend.tar")
    said = bare.run(
        "cd /tmp; tar -xf backend.tar; dpkg-deb -x correlator_*_amd64.deb unpacked; python3 -m venv env;"
        " mkdir wheels; mv unpacked/usr/lib/correlator/wheels/* wheels; rm wheels/joblog_correlator-*;"
        " PYTHONPATH=/tmp/backend env/bin/pip --quiet install --no-index --find-links wheels --no-build-isolation"
        f" './joblog_correlator-{built}{kind}[server]'; env/bin/correlator --version"
    ).stdout
    assert said.splitlines()[-1] == f"correlator {built}"


def test_the_debian_package_names_its_commit_to_apt_metrics_and_doctor(bare: Root, releases: list[Path], built: str):
    said = bare.run(
        "dpkg --install /tmp/correlator_*_amd64.deb >/dev/null; correlator --version;"
        " dpkg-query --show --showformat='${Version}\\n' correlator;"
        " sha256sum /usr/lib/correlator/wheels/joblog_correlator-*.whl;"
        " correlator demo --port 8686 --no-mqtt --directory /tmp/demo >/tmp/said 2>&1 & \n"
        "curl --silent --show-error --fail --retry 100 --retry-delay 1 --retry-connrefused --retry-max-time 60"
        " --output /dev/null http://127.0.0.1:8686/health/ready || { cat /tmp/said; exit 1; }\n"
        "curl --silent http://127.0.0.1:8686/metrics | grep ^correlator_build_info;"
        " correlator doctor --config /tmp/demo/correlator.toml | grep ': '"
    ).stdout
    assert f"correlator {built}\n" in said
    committed = time.gmtime(epoch(releases[0].parent.parent))
    assert f"{package_version(built, time.strftime('%Y%m%d%H%M%S', committed))}\n" in said, said
    assert f'version="{built}"' in said
    assert f"correlator {built}: " in said
    (wheel,) = releases[0].glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in said, "it is the wheel of the release"


def test_the_debian_package_for_arm64_runs_there(releases: list[Path], built: str, tmp_path: Path):
    root = with_files(Root(EMULATED, tmp_path), releases[0])
    said = root.run(
        "dpkg --install /tmp/correlator_*_arm64.deb >/dev/null; uname --machine; correlator --version;"
        " /usr/lib/correlator/venv/bin/python -c 'import asyncmy.connection, orjson, uvloop, msgspec, aiohttp';"
        " correlator check-config --config /dev/null | grep http.listen",
        within=2000,
    ).stdout
    assert said.splitlines()[-3:] == ["aarch64", f"correlator {built}", 'http.listen = "127.0.0.1:8686"'], said


def test_npm_installs_the_client_with_its_version(releases: list[Path], built: str, tmp_path: Path):
    (package,) = releases[0].glob("*.tgz")
    (tmp_path / "package.json").write_text('{ "private": true, "type": "module" }')
    command = [program("npm"), "install", "--offline", "--no-audit", "--no-fund", "--silent", str(package)]
    environ = os.environ | {"npm_config_cache": str(tmp_path / "cache")}
    subprocess.run(command, cwd=tmp_path, env=environ, check=True, timeout=120)
    script = "import about from 'correlator-client/package.json' with { type: 'json' }; import 'correlator-client';"
    done = subprocess.run(
        [program("node"), "--input-type=module", "--eval", f"{script} console.log(about.version)"],
        cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == built, done.stderr


INSIDE = """
set -e
mount --bind $root $root
mount -o remount,bind,ro $root
mount --rbind /dev $root/dev
mount -t proc proc $root/proc
mount -t tmpfs tmpfs $root/run
mount -t tmpfs -o mode=0700,uid=65532,gid=65532 tmpfs $root/var/lib/correlator
mkdir $root/run/secrets
echo secret-of-the-container >$root/run/secrets/api-token
ip link set lo up
inside="chroot --userspec=65532:65532 $root env -i $environ CORRELATOR_DATABASE__URL=mysql://x@127.0.0.1:1/x"
$inside $command >/dev/null &
daemon=$!
tries=0
until $inside $health 2>/dev/null; do tries=$((tries + 1)); [ $tries -lt 200 ]; sleep 0.3; done
echo "well"
$inside python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8686/metrics')" 2>&1 | tail -n 1
$inside sh -c 'id -u; touch /opt/correlator/x' 2>&1 || true
kill -TERM $daemon
code=0; wait $daemon || code=$?
echo "ended $code"
$inside $health 2>&1 || echo "unwell $?"
$inside ls /var/lib/correlator
"""


def test_the_image_runs_as_nobody_on_a_read_only_root_and_knows_whether_it_lives(
    releases: list[Path], built: str, tmp_path: Path
):
    (image,) = releases[0].glob("*.image.tar.gz")

    def buildah(*arguments: str) -> str:
        storage = ["--root", str(tmp_path / "images"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]
        command = ["buildah", *storage, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout.strip()

    container = buildah("from", f"docker-archive:{image}")
    config = json.loads(buildah("inspect", container))["Docker"]["config"]
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
    assert labels.items() >= {"version": built, "revision": commit(releases[0].parent.parent)}.items()
    assert (config["User"], config["StopSignal"]) == ("65532:65532", "SIGTERM")
    assert config["Healthcheck"]["Test"][0] == "CMD"
    given = {
        "root": buildah("mount", container),
        "environ": shlex.join(config["Env"]),
        "command": shlex.join(config["Entrypoint"] + config["Cmd"]),
        "health": shlex.join(config["Healthcheck"]["Test"][1:]),
    }
    script = "".join(f"{name}={shlex.quote(value)}\n" for name, value in given.items()) + INSIDE
    ended = subprocess.run(
        ["unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    said = ended.stdout.splitlines()
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    assert said[0] == "well"
    assert "HTTP Error 401" in said[1]
    assert said[2] == "65532"
    assert "Read-only file system" in said[3]
    assert said[4] == "ended 0"
    assert "no daemon answers at http://127.0.0.1:8686" in said[5]
    assert said[6] == "unwell 1"
    assert len(said) > 7, "its state"
