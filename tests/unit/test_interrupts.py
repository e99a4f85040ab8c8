"""A shell that starts the tests in the background ignores SIGINT for them: it has its effect all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.eventually import PATIENCE
from tests.support.paths import REPOSITORY

TESTS = """
import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import fork_server


def test_of_the_process_itself():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_of_a_child_process():
    with subprocess.Popen(["sleep", "3600"]) as child:
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
        assert child.wait() == -signal.SIGINT


async def test_of_a_forked_process(tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with (tmp_path / "output").open("wb") as output:
        child = await fork_server.start(["run", "--config", str(fifo)], os.environ, output.fileno())
    writer = await asyncio.to_thread(fifo.open, "wb")  # the child has begun to read its configuration
    child.send_signal(signal.SIGINT)
    with contextlib.suppress(BrokenPipeError), writer:  # the child may have gone
        writer.write(b"invalid")
    assert await child.wait() == 130  # not 78, of an invalid configuration
"""


@pytest.mark.timeout(3 * PATIENCE)
def test_sigint_has_its_default_effect_where_the_tests_start_with_it_ignored(tmp_path: Path):
    (tmp_path / "test_made_up.py").write_text(TESTS)
    shutil.copy(REPOSITORY / "tests" / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=60", "-rA"]
    done = subprocess.run(
        ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command, f"--rootdir={REPOSITORY}",
         f"--config-file={REPOSITORY / 'pyproject.toml'}", str(tmp_path)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )  # fmt: skip
    assert f"{TESTS.count('def test_')} passed" in done.stdout, done.stdout + done.stderr
