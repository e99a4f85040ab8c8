"""`GET /jobs/{any id}` under wrk, one core for the server and one for wrk, beside aiohttp with the same bytes."""

from __future__ import annotations

import asyncio
import os
import re

from benchmarks.appliance import jobs
from benchmarks.daemon import running, server
from benchmarks.harness import Limit, Number, Result, Size, in_turn, next_line, started_peer

CONNECTIONS = 32


async def measure(size: Size) -> Result:
    async with server() as mariadb:
        database = await mariadb.create_schema()
        async with running(database, jobs(1000)) as daemon:
            await daemon.shows(1000)
            name = "unified-live-failover-bench7-1758553933"
            body = await daemon.text(f"/api/v1/jobs/{name}")
            async with started_peer("same_bytes", body=body) as peer:
                port = (await next_line(peer))["port"]
                if (os.cpu_count() or 1) > 1:
                    for pid in (daemon.pid, peer.pid):
                        os.sched_setaffinity(pid, {0})
                ours, theirs = await in_turn(
                    size.runs,
                    lambda: _wrk(daemon.port, name, size.of(4, 1)),
                    lambda: _wrk(port, name, size.of(4, 1)),
                )
    what = f"GET /jobs/{{external id}}, {len(body):,} B, {CONNECTIONS} connections"
    return Result((Number(what, "requests/s", ours, "aiohttp, the same bytes", theirs, Limit("≥", 0.6, "ratio")),))


async def _wrk(port: int, name: str, seconds: int) -> float:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"http://127.0.0.1:{port}/api/v1/jobs/{name}"]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=(lambda: os.sched_setaffinity(0, {1})) if (os.cpu_count() or 1) > 1 else None,
    )
    output, _ = await process.communicate()
    found = re.search(rb"Requests/sec:\s+([\d.]+)", output)
    if found is None or b"Non-2xx" in output:
        raise RuntimeError(f"wrk says {output!r}")
    return float(found[1])
