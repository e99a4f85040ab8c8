"""Fleets that are large, and two that share a NATS server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nkeys
import pytest

from tests.support.appliance import Appliance, connected
from tests.support.bulk_rows import ago, fill, job_id
from tests.support.client_fold import Document
from tests.support.cluster import create_streams
from tests.support.collectors import collector, is_active
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.gateways import gateway_process
from tests.support.mariadb import Database, MariaDB
from tests.support.nats import Nats
from tests.support.stream_clients import CheckedReader, CheckedStream, CheckedWebsocket, closing
from tests.support.subscriptions import Wanted, documents, same
from tests.support.verdicts import Table
from tests.support.yardstick import megabytes, processor_seconds

APPLIANCES, PAST, RUNNING = 10, 5_000, 20
CLIENTS, MOVES = 500, 3

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

SIZES = Table(f"a fleet of {APPLIANCES} appliances", "what", "seconds", "MB")


async def past_of(database: Database, appliance: int) -> None:
    """Ended jobs, each with two steps, which no other appliance has."""
    begun, ended = ago(hours=5), ago(hours=4)
    first = 1_000_000 * appliance
    ids = [job_id(first + n) for n in range(PAST)]
    await fill(
        database,
        "job_tracking",
        ("id", "operation", "job_type", "status", "external_job_id", "started_at", "completed_at", "updated_at"),
        ((i, "op", "failover", "completed", f"past-{i}", begun, ended, ended) for i in ids),
    )
    await fill(
        database,
        "job_steps",
        ("job_id", "seq", "name", "status", "started_at", "completed_at"),
        ((i, seq, f"step-{seq}", "completed", begun, ended) for i in ids for seq in (1, 2)),
    )


async def changing(database: Database, rnd: random.Random, over: asyncio.Event) -> None:
    """Jobs of one appliance begin, go on and end until `over`: `RUNNING` of them at any time."""
    async with connected(database) as connection:
        appliance = Appliance(connection)
        running: list[str] = []
        while not over.is_set():
            while len(running) < RUNNING:
                running.append(await appliance.job(f"gui-{rnd.randrange(1 << 40)}"))
            name = rnd.choice(running)
            match rnd.randrange(6):
                case 0:
                    await appliance.end(name, rnd.choice(("completed", "failed")), "no space left")
                    running.remove(name)
                case 1 | 2:
                    await appliance.step(name, rnd.randrange(1, 1 << 20), f"step-{rnd.randrange(9)}")
                case _:
                    await appliance.log("still copying", rnd.choice(("INFO", "WARN")), job_id=name)
            await asyncio.sleep(0.2)


async def moving(reader: CheckedReader, urls: Sequence[str], rnd: random.Random) -> None:
    """Connect to one gateway after the other, each time from the last position."""
    for _ in range(MOVES):
        await asyncio.sleep(rnd.uniform(2, 12))
        reader.drop()
        await asyncio.sleep(rnd.choice((0.0, 0.5, 2.0)))
        reader.url = rnd.choice(urls)
        await reader.connect()


def some_wanted(rnd: random.Random, now_running: Sequence[str]) -> Wanted:
    """What people look at: their appliance, what fails, or jobs that they know."""
    instance = f"dc{rnd.randrange(APPLIANCES)}"
    return rnd.choice(
        (
            Wanted(status=("running",), instance=(instance,)),
            Wanted(status=("running",)),
            Wanted(status=("failed",), instance=(instance,)),
            Wanted(jobs=tuple(rnd.sample(list(now_running), 4))),
            Wanted(jobs=(rnd.choice(now_running),)),
        )
    )


async def changed(gateway: Daemon, names: Sequence[str]) -> dict[str, Document]:
    """What the gateway shows of the jobs that may match some client's filter: `names`, and by status."""
    found = {name: await gateway.job(name) for name in names}
    async for page in gateway.pages("/api/v1/jobs", status="running,failed", limit=500, steps=1):
        found |= {job["job_id"]: job for job in page["jobs"]}
    return found


def matching(wanted: Wanted, shown: dict[str, Document]) -> dict[str, Document]:
    return {
        i: job
        for i, job in shown.items()
        if (wanted.jobs is None or i in wanted.jobs)
        and (not wanted.status or job["status"] in wanted.status)
        and (not wanted.instance or job["instance"] in wanted.instance)
    }


async def test_ten_appliances_of_five_thousand_jobs_serve_five_hundred_clients_that_move(
    mariadb: MariaDB, nats: Nats, tmp_path: Path
):
    seed = random.randrange(1 << 32)
    rnd = random.Random(seed)
    await create_streams(nats.url)
    async with contextlib.AsyncExitStack() as stack:
        databases = [await mariadb.create_schema(f"fleet_{n}") for n in range(APPLIANCES)]
        for database in databases:
            stack.push_async_callback(database.drop)
        collectors: list[Daemon] = []
        for n, database in enumerate(databases):
            await past_of(database, n)
            one = await stack.enter_async_context(
                collector(tmp_path / f"dc{n}", database, nats.url, cluster__instance=f"dc{n}")
            )
            await one.start()
            collectors.append(one)
        gateways = [await stack.enter_async_context(gateway_process(tmp_path / f"g{n}", nats.url)) for n in range(2)]
        urls = [gateway.url for gateway in gateways]
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for database in databases:
                group.create_task(changing(database, random.Random(rnd.random()), over))

            async def all_run() -> list[str]:
                found = [(await g.get("/api/v1/jobs?status=running&limit=500"))[1]["jobs"] for g in gateways]
                assert min(map(len, found)) >= APPLIANCES * RUNNING
                return [job["job_id"] for job in found[0]]

            now_running = await eventually(all_run, within=180.0, every=0.5)
            readers = [
                (CheckedStream if n % 4 == 0 else CheckedWebsocket)(rnd.choice(urls), some_wanted(rnd, now_running))
                for n in range(CLIENTS)
            ]
            async with closing(readers):
                for i in range(0, CLIENTS, 25):
                    await asyncio.gather(*(reader.connect() for reader in readers[i : i + 25]))
                began = asyncio.get_running_loop().time()
                await eventually(lambda: all(reader.fold.synced for reader in readers), every=0.1)
                took = asyncio.get_running_loop().time() - began
                SIZES.add(f"until {CLIENTS} clients have their snapshots", took, "")
                await asyncio.gather(*(moving(reader, urls, random.Random(rnd.random())) for reader in readers))
                over.set()

                async def all_equal() -> bool:
                    shown = [await changed(gateway, now_running) for gateway in gateways]
                    for reader in readers:
                        assert not reader.ended, (seed, reader.closed)
                        of = shown[urls.index(reader.url)]
                        for sub, wanted in reader.wanted.items():
                            held, due = reader.fold.jobs[sub], matching(wanted, of)
                            assert held.keys() == due.keys(), (seed, wanted)
                            assert all(same(without_times(held[i]), without_times(due[i])) for i in due), (seed, wanted)
                    return True

                await eventually(all_equal, within=120.0, every=2.0)
                resumed = [one for reader in readers for one in reader.resumed]
                assert len(resumed) == CLIENTS * MOVES
                assert all(resumed), (seed, f"{resumed.count(False)} of {len(resumed)} got a snapshot")
        processes: dict[str, Daemon] = {"processor of a gateway": gateways[0], "of a collector": collectors[0]}
        for name, process in processes.items():
            SIZES.add(name, processor_seconds(process.pid), megabytes(process.pid))
        assert not [one for one in (*collectors, *gateways) if "Traceback" in one.log()]


def without_times(job: Document) -> Document:
    """A document without what goes on by itself between two readings."""
    return {k: v for k, v in job.items() if k not in ("forecast", "rev", "percent")}


async def test_two_fleets_with_accounts_of_their_own_share_a_server_and_never_meet(
    two_databases: tuple[Database, Database], tmp_path: Path
):
    """Both have an appliance of the same name."""
    accounts, files = [], []
    for fleet in ("one", "two"):
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        public = nkeys.from_seed(seed).public_key.decode()
        accounts.append(f"{fleet} {{ jetstream: enabled, users: [{{ nkey: {public} }}] }}")
        files.append(tmp_path / f"{fleet}.nk")
        files[-1].write_bytes(seed)
        files[-1].chmod(0o600)
    async with contextlib.AsyncExitStack() as stack:
        nats = stack.enter_context(Nats("accounts {", *accounts, "}"))
        seen: list[tuple[Any, Appliance, Daemon]] = []
        for number, (database, file) in enumerate(zip(two_databases, files, strict=True)):
            await create_streams(nats.url, credentials_file=file)
            one = await stack.enter_async_context(
                collector(tmp_path / f"c{number}", database, nats.url, cluster__credentials_file=file)
            )
            await one.start()
            await eventually(partial(is_active, one))
            environ = {"CORRELATOR_CLUSTER__CREDENTIALS_FILE": str(file)}
            gateway = await stack.enter_async_context(gateway_process(tmp_path / f"g{number}", nats.url, **environ))
            appliance = Appliance(await stack.enter_async_context(connected(database)))
            seen.append((one, appliance, gateway))
        made = [await appliance.job(f"gui-{n}") for n, (_, appliance, _) in enumerate(seen)]
        for n, (_, appliance, shown_by) in enumerate(seen):
            await eventually(partial(shown_by.job, f"gui-{n}"))
            await appliance.end(made[n], "failed", "no space")

        async def each_has_its_own() -> bool:
            for n, (one, _, gateway) in enumerate(seen):
                shown = await documents(gateway)
                assert {i: job["status"] for i, job in shown.items()} == {made[n]: "failed"}
                status, page = await gateway.get("/api/v1/instances")
                assert (status, [i["instance"] for i in page["instances"]]) == (200, ["dc1"])
                assert await is_active(one)
                assert not (await gateway.get("/health/ready"))[1]["degraded"]
                assert await gateway.job(f"gui-{1 - n}") is None
            return True

        await eventually(each_has_its_own)
