"""Two fleets on one NATS server: each in an account of its own, with the same names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import orjson
import pytest

from correlator.cluster import keys
from correlator.cluster.connection import Connection
from tests.support.cluster_harness import Collector, epoch_of
from tests.support.deployed_nats import DeployedNats
from tests.support.eventually import eventually
from tests.support.gateways import RunningGateway, running
from tests.support.proxies import rewritten

SECOND = """
  second {
    jetstream: enabled
    users: [
      { user: "CN=stranger", permissions: $role-gateway }
      { user: "CN=collector-dc2", permissions: $role-collector-dc1 }
    ]
  }
}
"""


class TwoFleets(DeployedNats):
    """The second fleet has the users stranger, a gateway, and collector-dc2, whose appliance is dc1 too."""

    def _files(self) -> None:
        super()._files()
        file = self.folder / "accounts.conf"
        users = '\n{ user: "CN=collector-dc2", permissions: $role-collector-dc2 }'
        file.write_text(
            rewritten(file.read_text(), {users: "", 'include "collector-dc2.conf"': ""}).rstrip().removesuffix("}")
            + SECOND
        )
        server = self.folder / "nats-server.conf"
        server.write_text(rewritten(server.read_text(), {"max_file_store: 12GB": "max_file_store: 24GB"}))


@pytest.fixture
def fleets() -> Iterator[TwoFleets]:
    with TwoFleets() as server:
        yield server


async def test_two_fleets_in_accounts_of_their_own_share_nothing_but_the_server(fleets: TwoFleets):
    users = (("collector-dc1", "gateway", "one"), ("collector-dc2", "stranger", "two"))
    async with contextlib.AsyncExitStack() as stack:
        collectors: list[Collector] = []
        gateways: list[RunningGateway] = []
        for user, reader, name in users:
            one = Collector(fleets.url)
            one.connection = Connection(fleets.section(user), "collector")
            await stack.enter_async_context(one.connected())
            one.change("a", name)
            await stack.enter_async_context(one.writing())
            one.happen(len(collectors) + 1)
            collectors.append(one)
            gateways.append(await stack.enter_async_context(running(fleets.url, fleets.section(reader, "here"))))

        async def shows(number: int) -> bool:
            found = (await gateways[number].get("/api/v1/jobs"))[1]["jobs"]
            return {job["job_id"] for job in found} == {"a", users[number][2]}

        async def has_event(number: int) -> bool:
            found = await collectors[number].connection.last(keys.EVENTS, keys.event("dc1", "a"))
            return found is not None and orjson.loads(found.data)["event_id"] == number + 1

        for number in range(2):
            await eventually(partial(shows, number))
            await eventually(partial(has_event, number))
        assert len({await epoch_of(one.connection) for one in collectors}) == 2
