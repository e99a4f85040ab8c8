"""What other tests rely on: ports of their own, and waits that end."""

import asyncio
import sys

import pytest

from tests.support.eventually import eventually
from tests.support.paths import REPOSITORY
from tests.support.servers import SHARES, free_port


async def test_a_port_is_given_once_and_to_one_process_at_a_time():
    code = "from tests.support.servers import free_port\nfor _ in range(150): print(free_port())"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE
    )
    ours = {free_port() for _ in range(150)}
    out, _ = await process.communicate()
    theirs = {int(port) for port in out.split()}
    assert (len(ours), len(theirs)) == (150, 150)
    assert {port % SHARES for port in ours}.isdisjoint(port % SHARES for port in theirs)


async def test_eventually_waits_for_a_true_value_and_reports_the_last_one():
    values = iter([0, 0, 3])
    assert await eventually(lambda: next(values)) == 3

    async def refused():
        raise ConnectionRefusedError("nobody there")

    with pytest.raises(AssertionError, match="nobody there"):
        await eventually(refused, within=0.1)
    with pytest.raises(AssertionError, match=r"last value: \[\]"):
        await eventually(list, within=0.1)


async def test_eventually_does_not_wait_for_a_condition_that_hangs():
    async with asyncio.timeout(60):
        with pytest.raises(AssertionError, match="TimeoutError"):
            await eventually(asyncio.Event().wait, within=0.1)
