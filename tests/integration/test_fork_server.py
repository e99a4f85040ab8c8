"""A forked process begins as one that has imported the program itself."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.support import fork_server
from tests.support.eventually import eventually
from tests.support.paths import REPOSITORY

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("CORRELATOR_")}


async def _start(folder: Path, *arguments: str, **more: str) -> fork_server.ForkedProcess:
    with (folder / "log").open("ab") as log:
        return await fork_server.start(arguments, ENVIRON | more, log.fileno())


async def test_it_shares_no_descriptor_with_its_server_and_ends_by_a_signal(tmp_path: Path):
    first = await _start(tmp_path, "demo", "--port", "0", "--no-mqtt", "--directory", str(tmp_path))
    second = await _start(tmp_path, "demo", "--port", "0", "--no-mqtt", "--directory", str(tmp_path / "second"))

    def sockets(pid: int) -> set[str]:
        return {str(file) for link in Path(f"/proc/{pid}/fd").iterdir() if "socket:" in str(file := link.readlink())}

    await eventually(lambda: not sockets(first.pid) & sockets(second.pid))  # once the second has closed the server's
    first.kill()
    assert await first.wait() == -signal.SIGKILL
    second.send_signal(signal.SIGKILL)
    assert await second.wait() == first.returncode == second.returncode
    first.send_signal(signal.SIGTERM)  # nobody is there


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PYTHONMALLOC"])
def test_what_is_read_before_a_program_begins_needs_a_start_of_its_own(name: str):
    assert fork_server.can_start(os.environ | {"CORRELATOR_DATABASE__URL": "mysql://a@b/c"})
    assert not fork_server.can_start(os.environ | {name: "different"})


async def test_the_server_ends_with_the_process_that_uses_it(tmp_path: Path):
    code = (
        "import asyncio, os, pathlib, signal, sys\n"
        "from tests.support import fork_server\n"
        "with open(sys.argv[1], 'wb') as log:\n"
        "    asyncio.run(fork_server.start(['--version'], os.environ, log.fileno()))\n"
        "print(*(f.read_text() for f in pathlib.Path('/proc/self/task').glob('*/children')), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(tmp_path / "log")), cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    server = Path(f"/proc/{int(out)}")
    await eventually(lambda: not server.exists())
