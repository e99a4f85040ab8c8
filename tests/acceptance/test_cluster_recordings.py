"""Two recordings, replayed into two appliances of a cluster at once, end equal to their tables everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.eventually import PATIENCE, eventually
from tests.support.mariadb import Database
from tests.support.nats import NatsCluster
from tests.support.recorded_fleet import Clients, recorded_fleet
from tests.support.replay import BUSY, MIXED, load, shift, with_failovers_of_joblog
from tests.support.whole_jobs import whole_jobs

JOBS = 15
"""Jobs of each recording in the short form."""

PREFIX = 3000
"""Transactions of `busy` from which these are chosen."""

LOGS_READ = 20
"""Jobs of each appliance whose log lines are compared in the long form."""


async def none(differences: Callable[[], Awaitable[list[str]]], within: float = PATIENCE) -> None:
    """Wait until there are no differences. Forecasts of running jobs change meanwhile."""

    async def equal() -> bool:
        found = await differences()
        assert not found, found[:10]
        return True

    await eventually(equal, within=within, every=0.3)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
async def test_recordings_end_equal_everywhere_over_a_takeover_and_a_dead_nats_server(
    whole: bool, two_databases: tuple[Database, Database], nats_cluster: NatsCluster, tmp_path: Path
):
    """In the long form the server that dies leads the stream."""
    mixed, busy = load(MIXED), load(BUSY, most=None if whole else PREFIX)
    if not whole:
        mixed, busy = whole_jobs(mixed, JOBS), whole_jobs(busy, JOBS)
    mixed, busy = with_failovers_of_joblog(shift(mixed)), with_failovers_of_joblog(shift(busy))
    one, two = two_databases
    async with recorded_fleet(tmp_path, nats_cluster, {"dc1": (one, mixed, 2), "dc2": (two, busy, 1)}) as fleet:
        dc1, _ = fleet.appliances
        clients = Clients(fleet.gateways)
        async with clients.staying():
            async with clients.moving(moved=False):
                await fleet.replay(0.2)
                await eventually(lambda: all(client.jobs for client in clients.all))
                active, node = await dc1.active(), await fleet.node(leads=whole)
                epochs = clients.epochs
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(fleet.replay(0.6))
                    await dc1.passes(0.3)
                    await active.kill()
                    await asyncio.to_thread(node.kill)
            await fleet.replay(0.8)
            assert await dc1.active() is dc1.standby(active)
            async with clients.moving(moved=True):
                await fleet.replay(1.0)
                if whole:
                    await asyncio.to_thread(node.start)
                    await active.start(ready=False)
                await none(lambda: fleet.lists_differ(clients), within=180)
                for process in [*fleet.gateways, *[await appliance.active() for appliance in fleet.appliances]]:
                    await none(lambda: fleet.snapshots_differ(process))  # noqa: B023
                assert (clients.started_afresh(), clients.epochs) == ([], epochs)
                assert len(epochs) == 1
        for appliance, gateway in zip(fleet.appliances, fleet.gateways, strict=True):
            await none(lambda: fleet.events_differ(appliance))  # noqa: B023
            assert not clients.legacy & appliance.tables["job_tracking"].keys()
            if whole:
                jobs = [str(i) for i in appliance.tables["job_tracking"]]
                assert not await fleet.log_differs(appliance, gateway, jobs[:LOGS_READ])
