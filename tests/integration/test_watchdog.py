"""A process that makes no progress ends itself, whatever holds it, and one that was stopped goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from correlator.ops import watchdog
from tests.support.eventually import PATIENCE
from tests.support.paths import REPOSITORY

LIMIT = 1.0

PROGRAM = f"""
import ctypes, threading, time

from correlator.ops import watchdog


def beats():
    while True:
        time.sleep(0.1)
        beat()


def waits_for_itself():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def holds_the_lock_of_the_interpreter():
    lock, mutex = ctypes.PyDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    lock(mutex)


beat = watchdog.start({LIMIT})
beat()
print("beating", flush=True)
"""

AS_FIRST_PROCESS = ["unshare", *(["--user", "--map-root-user"] if os.geteuid() else []), "--pid", "--fork"]
"""As in a container, where a process ignores every signal that it has no handler for."""


async def started(what: str, *before: str) -> asyncio.subprocess.Process:
    """The process, once it beats. `before`: the command that starts it."""
    process = await asyncio.create_subprocess_exec(
        *before, sys.executable, "-c", PROGRAM + what,
        cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == b"beating\n"
    return process


@pytest.mark.parametrize("before", [[], AS_FIRST_PROCESS], ids=["process", "first-process"])
@pytest.mark.parametrize("hang", ["waits_for_itself", "holds_the_lock_of_the_interpreter"])
async def test_a_process_that_hangs_ends_with_its_stack_in_the_log(hang, before):
    process = await started(f"{hang}()", *before)
    _, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == watchdog.EXIT_CODE
    assert f"in {hang}\n" in errors.decode()


async def test_a_process_that_was_stopped_for_longer_than_it_may_be_silent_goes_on():
    process = await started("beats()")
    try:
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(LIMIT + 0.5)
        process.send_signal(signal.SIGCONT)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), LIMIT + watchdog.GRACE + 1.0)
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize(
    ("environ", "limit"),
    [
        ({}, watchdog.LIMIT),
        ({"NOTIFY_SOCKET": "/run/systemd/notify"}, watchdog.LIMIT),
        ({"NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": "30000000"}, None),
        ({"WATCHDOG_USEC": "2500000"}, 2.5),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "never"}, watchdog.LIMIT),
    ],
    ids=["container", "no-watchdog", "systemd", "given", "off", "odd"],
)
def test_a_process_watches_itself_where_no_service_manager_does(monkeypatch, environ, limit):
    started: list[float] = []
    monkeypatch.setattr(watchdog, "start", started.append)
    watchdog.of_process(environ)
    assert started == ([limit] if limit is not None else [])
