"""A run of the tests that leaves something behind fails and names it, however many runs there are at the same time."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

FILES = {
    "a file": ("pathlib.Path(tempfile.gettempdir(), 'forgotten').write_text('x')", r"/correlator-\w+/forgotten"),
    "a folder": ("pathlib.Path(tempfile.mkdtemp(prefix='dir-'), 'in').touch()", r"/correlator-\w+/dir-\w+: in"),
    "of a child": ("subprocess.run(['mktemp'], check=True, stdout=subprocess.DEVNULL)", r"/correlator-\w+/tmp\.\w+"),
    "a process": ("subprocess.Popen(['sleep', '77'])", r"process \d+: sleep 77"),
    "shared memory": ("pathlib.Path('/dev/shm/forgotten').touch()", "/dev/shm/forgotten"),
    "nothing": ("tempfile.TemporaryFile().write(b'x')", None),
}


async def run(folder: Path, body: str, *options: str) -> tuple[int, str]:
    """The exit code and the output of a run of one test."""
    (folder / "test_one.py").write_text(
        f"import pathlib, subprocess, tempfile\ndef test_one(tmp_path):\n    (tmp_path / 'own').touch()\n    {body}\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-p", "tests.support.leftovers", "-c", os.devnull, "--rootdir", str(folder)),
        *(*options, str(folder)),
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


def folders_of_tests(folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in folder.rglob("own")]


@pytest.mark.parametrize("what", FILES)
async def test_a_run_that_leaves_something_behind_fails_and_names_it(tmp_path: Path, what: str):
    body, named = FILES[what]
    if what == "shared memory" and os.geteuid() != 0:
        pytest.skip("only root can give a run a shared memory of its own")
    code, out = await run(tmp_path, body)
    if named is None:
        assert (code, "left behind" in out) == (0, False), out
    else:
        assert code == 1, out
        assert re.search(f"left behind:\n.*{named}", out), out
        for number in re.findall(r"process (\d+): sleep 77", out):
            os.kill(int(number), 9)


async def test_runs_at_the_same_time_see_what_is_their_own(tmp_path: Path):
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        folder.mkdir()
    bodies = [FILES["a file"][0], FILES["nothing"][0], FILES["nothing"][0]]
    found = await asyncio.gather(
        *(run(folder, body, "-p", "xdist", "-n", "1") for folder, body in zip(folders, bodies, strict=True))
    )
    assert [code for code, _ in found] == [1, 0, 0], found


async def test_only_the_folders_of_failed_tests_stay(tmp_path: Path):
    without = "import shutil; shutil.rmtree(tmp_path.parent); raise RuntimeError"
    for body, left in (("pass", []), (without, []), ("raise RuntimeError", [r"correlator-\w+/t/test_one0/own"])):
        _, out = await run(tmp_path, body)
        found = folders_of_tests(tmp_path)
        assert len(found) == len(left), (found, out)
        assert ("1 failed" in out) is ("raise" in body), out
        assert all(map(re.fullmatch, left, found)), (found, out)
