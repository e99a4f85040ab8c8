"""The Debian package in whole systems without network: installed, used, upgraded, removed and purged.

Nothing is booted here, as dpkg needs no more than a root folder; test_unit.py has the service.
"""

import re
import subprocess
import time
from pathlib import Path

import pytest

from correlator.cli import main
from deploy.debian.build import package_version
from deploy.version import epoch, version
from tests.support.system.installations import RELEASE, Installations, Installed, built
from tests.support.system.roots import ASKED, RELEASES, Root

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", params=ASKED)
def installed(request: pytest.FixtureRequest, installations: Installations) -> Installed:
    """Each release in turn; not to be written to: `copied` is."""
    return installations.of(request.param)


@pytest.fixture
def copied(installed: Installed, tmp_path: Path) -> Root:
    """A system that has the package, to change."""
    return installed.root.copy(tmp_path)


@pytest.fixture(scope="module")
def trixie(installations: Installations) -> Root:
    """Debian 13 with the package, for what is the same everywhere. Not to be written to."""
    return installations.of("trixie").root


def test_it_installs_within_a_minute_without_network(installed: Installed):
    assert installed.seconds < 60
    state = installed.root.run("dpkg-query --show --showformat='${Status} ${Version}' correlator").stdout
    committed = time.strftime("%Y%m%d%H%M%S", time.gmtime(epoch()))
    assert state == f"install ok installed {package_version(version(), committed)}"


def test_every_user_can_run_it_on_the_systems_own_python(installed: Installed):
    said = installed.root.run(
        "cd /; setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs -- correlator --version;"
        " readlink -f /usr/lib/correlator/venv/bin/python3"
    ).stdout.split("\n")
    assert said[:2] == [f"correlator {version()}", f"/usr/bin/python{RELEASES[installed.root.release]}"]


def test_it_runs_with_the_fast_loop_and_driver_and_has_no_pip(installed: Installed):
    found = installed.root.run(
        "cd /; for name in uvloop asyncmy.connection orjson pip setuptools; do"
        " /usr/lib/correlator/venv/bin/python -c 'import importlib, sys; importlib.import_module(sys.argv[1])' $name"
        " 2>/dev/null && echo $name; done; true"
    ).stdout.split()
    assert found == ["uvloop", "asyncmy.connection", "orjson"]


def test_only_root_can_change_the_program(installed: Installed):
    found = installed.root.run(
        "find /usr/lib/correlator /etc/correlator ! -type l '(' ! -user root -o ! -group root -o -perm /022 ')'"
    ).stdout
    assert found == ""


def test_all_of_it_is_compiled_to_byte_code(installed: Installed):
    tag = f"cpython-{RELEASES[installed.root.release].replace('.', '')}"
    uncompiled = installed.root.run(
        "cd /usr/lib/correlator/venv/lib/python*/site-packages; find . -name '*.py' | while read -r file; do"
        f' [ -e "${{file%/*}}/__pycache__/$(basename "$file" .py).{tag}.pyc" ] || echo "$file"; done'
    ).stdout.split()
    assert uncompiled == []


def test_the_configuration_that_comes_along_is_every_default(installed: Installed):
    said = installed.root.run(
        "correlator check-config --config /etc/correlator/correlator.toml >/tmp/with;"
        " STATE_DIRECTORY=/var/lib/correlator correlator check-config --config /dev/null >/tmp/without;"
        " cmp /tmp/with /tmp/without; cat /tmp/with"
    ).stdout
    assert 'http.listen = "127.0.0.1:8686"' in said.splitlines()


def test_a_removal_keeps_the_configuration_the_password_and_the_state(trixie: Root, tmp_path: Path):
    root = trixie.copy(tmp_path)
    root.run(
        "printf secret >/etc/correlator/db-password; mkdir -p /var/lib/correlator;"
        " printf state >/var/lib/correlator/checkpoint; dpkg --remove correlator"
    )
    kept = root.run("cat /etc/correlator/db-password /var/lib/correlator/checkpoint; ls /etc/correlator").stdout
    assert kept == "secretstatecorrelator.toml\ndb-password\ngateway.toml\n"
    assert root.run("ls /usr/lib/correlator", check=False).returncode == 2


def test_an_upgrade_that_fails_leaves_the_version_before_at_work(trixie: Root, package: Path, tmp_path: Path):
    root = trixie.copy(tmp_path)
    ended = root.run(
        "cd /tmp; dpkg-deb --raw-extract correlator.deb broken; sed --in-place 's/^Version: .*/&+broken/'"
        ' broken/DEBIAN/control; printf x >>"$(ls broken/usr/lib/correlator/wheels/yarl-*cp313*)";'
        " dpkg-deb --build -Znone broken >/dev/null; dpkg --install broken.deb",
        check=False,
    )
    assert ended.returncode == 1
    assert "What was in use before stays" in ended.stdout
    after = "correlator --version; ls -d /usr/lib/correlator/venv-* | wc -l"
    assert root.run(after).stdout.splitlines() == [f"correlator {version()}", "1"]
    root.run("dpkg --install /tmp/correlator.deb")
    assert root.run(after).stdout.splitlines() == [f"correlator {version()}", "1"]


def test_another_python_of_the_system_gets_an_environment_of_its_own(trixie: Root, tmp_path: Path):
    """dpkg runs the trigger for every package that brings /usr/bin/python3, here for the same one once more."""
    root = trixie.copy(tmp_path)
    again = (
        "cd /tmp; rm -rf again; mkdir -p again/DEBIAN; dpkg --listfiles python3-minimal | while read -r file; do"
        ' if [ ! -d "$file" ] || [ -L "$file" ]; then cp -a --parents "$file" again; fi; done; '
        "dpkg --status python3-minimal | grep -v ^Status: >again/DEBIAN/control;"
        " dpkg-deb --build -Znone again >/dev/null; dpkg --install again.deb 2>&1; readlink /usr/lib/correlator/venv"
    )
    first = root.run("readlink /usr/lib/correlator/venv").stdout.split()[-1]
    assert root.run(again).stdout.split()[-1] == first, "it was of this Python already"
    root.run("mv /usr/lib/correlator/venv/lib/python3.13 /usr/lib/correlator/venv/lib/python3.12")
    assert root.run("correlator --version", check=False).returncode != 0
    assert root.run(again).stdout.split()[-1] != first
    assert root.run("correlator --version; ls -d /usr/lib/correlator/venv-* | wc -l").stdout.split() == [
        "correlator",
        version(),
        "1",
    ]


def test_shells_complete_the_commands(trixie: Root):
    said = trixie.run(
        "bash -c 'source /usr/share/bash-completion/completions/correlator; complete -p correlator;"
        " COMP_WORDS=(correlator che) COMP_CWORD=1; _correlator_completion correlator;"
        ' echo "${COMPREPLY[@]}"\'; ls /usr/share/zsh/vendor-completions /usr/share/fish/vendor_completions.d'
    ).stdout.split()
    assert "_correlator_completion" in said
    assert {"check-config", "_correlator", "correlator.fish"} <= set(said)


def test_the_manual_describes_every_command_and_every_key(trixie: Root, tmp_path: Path):
    for page, words in {
        "man1/correlator.1": [name for name, command in main.commands.items() if not command.hidden],
        "man5/correlator.toml.5": ["[database]", "url", "[database.tls]", "stalled_after", "[log]"],
    }.items():
        file = tmp_path / Path(page).name
        file.write_text(trixie.run(f"zcat /usr/share/man/{page}.gz").stdout)
        shown = subprocess.run(
            ["man", "--warnings", "--local-file", str(file)],
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "100", "MANPAGER": "cat"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stderr == ""
        lines = {line.split("=")[0].split(maxsplit=1)[0] for line in shown.stdout.splitlines() if line.strip()}
        assert set(words) <= lines


def test_the_package_is_in_order(package: Path):
    ended = subprocess.run(["lintian", "--allow-root", str(package)], capture_output=True, text=True, check=False)
    assert ended.stdout == ""


def test_the_same_sources_make_the_same_package(tmp_path: Path):
    once, again = built(tmp_path / "once"), built(tmp_path / "again")
    assert once.read_bytes() == again.read_bytes()
    assert once.name.startswith(f"correlator_{RELEASE}_"), "that of a later commit replaces the file"


def test_the_package_has_wheels_for_every_python_and_no_index_to_download_from(package: Path):
    listed = subprocess.run(["dpkg-deb", "--contents", str(package)], capture_output=True, text=True, check=True).stdout
    for name in ("aiohttp", "asyncmy", "orjson", "uvloop"):
        versions = {f"{tag[0]}.{tag[1:]}" for tag in re.findall(rf"/{name}-\S*-cp(\d+)-\S*\.whl", listed)}
        assert versions == set(RELEASES.values()), name
    control = subprocess.run(
        ["dpkg-deb", "--info", str(package), "postinst"], capture_output=True, text=True, check=True
    )
    assert "://" not in control.stdout
