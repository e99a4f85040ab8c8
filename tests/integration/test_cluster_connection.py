"""The connection to NATS and its streams: it comes back whatever happened, and says why it is away."""

import asyncio
import contextlib
import gc
import re
import time
from dataclasses import replace

import pytest
from nats.aio.msg import Msg

from correlator.cluster import keys, streams
from correlator.cluster.connection import ClusterUnavailable, Connection, Refused
from correlator.config.schema import NatsUrl
from correlator.ops.metrics import REGISTRY
from correlator.tasks import TURN
from tests.support.background import in_background
from tests.support.cluster import connected, handled, running, settings
from tests.support.deployed_nats import DeployedNats
from tests.support.eventually import PATIENCE, eventually
from tests.support.faults.proxy import Proxy
from tests.support.garbage import send
from tests.support.nats import Nats
from tests.support.there import there


async def test_streams_are_created_once_and_every_foreign_setting_is_named_and_reset(nats):
    async with connected(nats.url) as connection, connected(nats.url) as other:
        everything = list(streams.wanted(1))
        made = await asyncio.gather(streams.create(connection, 1), streams.create(other, 1))
        assert {one.name for several in made for one in several if one.changed is None} == set(everything)
        assert await streams.create(connection, 1) == [streams.Made(name, []) for name in everything]
        assert streams.problem(await streams.infos(connection)) is None
        config = there(await streams.info(connection, keys.STATE))["config"]
        chosen = {"max_bytes": 5_000_000, "description": "ours", "compression": "s2"}
        for name, value in FOREIGN.items():
            await connection.api(f"STREAM.UPDATE.{keys.STATE}", config | chosen | {name: value})
            said = str(streams.problem(await streams.infos(connection)))
            assert f"KV_cor: {name} is " in said, said
            assert streams.COMMAND in said
            changed = (await streams.create(connection, 1))[0]
            assert [setting.name for setting in changed.changed or ()] == [name]
            assert changed.refusal is None
            assert there(await streams.info(connection, keys.STATE))["config"] == config | chosen
        await connection.api("STREAM.DELETE.cor_events")
        with pytest.raises(Refused):
            await streams.create(connection, 3)


FOREIGN = {
    "max_msgs": 1000,
    "max_msgs_per_subject": 2,
    "max_age": 600 * 10**9,
    "max_msg_size": 1000,
    "max_consumers": 1,
    "discard": "old",
    "no_ack": True,
    "duplicate_window": 10**9,
    "allow_direct": False,
    "allow_rollup_hdrs": True,
    "republish": {"src": "$KV.cor.dc1.>", "dest": "other.>"},
    "subject_transform": {"src": "$KV.cor.x.>", "dest": "$KV.cor.y.>"},
    "subjects": ["$KV.cor.>", "more"],
    "sources": [{"name": "cor_events"}],
}
"""Settings that change what collectors and gateways rely on, each by itself."""


async def test_a_sealed_stream_is_named_although_nats_unseals_none(nats):
    async with connected(nats.url) as connection:
        await streams.create(connection, 1)
        config = there(await streams.info(connection, keys.EVENTS))["config"]
        await connection.api(f"STREAM.UPDATE.{keys.EVENTS}", config | {"sealed": True})
        assert "cor_events: " in str(streams.problem(await streams.infos(connection)))
        (refused,) = [one for one in await streams.create(connection, 1) if one.refusal is not None]
        assert refused.name == keys.EVENTS
        assert "sealed" in [setting.name for setting in refused.changed or ()]


OF_EARLIER_VERSIONS: dict[str, dict[str, object]] = {
    keys.STATE: {"allow_rollup_hdrs": True, "subject_delete_marker_ttl": 86400 * 10**9},
    keys.ALIVE: {"allow_rollup_hdrs": True, "storage": "memory", "persist_mode": "default"},
    keys.CHECKPOINT: {"allow_rollup_hdrs": True},
}


async def test_the_streams_of_an_earlier_version_are_changed_and_keep_what_they_have(nats):
    async with connected(nats.url) as connection:
        for name, settings_ in streams.wanted(1).items():
            await connection.api(
                f"STREAM.CREATE.{name}", settings_ | {"name": name} | OF_EARLIER_VERSIONS.get(name, {})
            )
        kept = {keys.STATE: keys.job("dc1", "a"), keys.EVENTS: keys.event("dc1", "a")}
        for subject in kept.values():
            await connection.request(subject, b"kept")
        said = str(streams.problem(await streams.infos(connection)))
        assert all(f"{name}: allow_rollup_hdrs is True, not unset" in said for name in OF_EARLIER_VERSIONS), said
        assert {one.name for one in await streams.create(connection, 1) if one.changed} == OF_EARLIER_VERSIONS.keys()
        assert streams.problem(await streams.infos(connection)) is None
        for name, subject in kept.items():
            assert there(await connection.last(name, subject)).data == b"kept"


async def test_a_single_server_that_starts_again_has_every_stream(nats):
    async with connected(nats.url) as connection:
        await streams.create(connection, 1)
        await connection.request(keys.alive("dc1"), b"{}")
        await asyncio.to_thread(nats.kill)
        await asyncio.to_thread(nats.start)
        await connection.connect(PATIENCE)
        assert streams.problem(await streams.infos(connection)) is None


async def test_a_request_of_the_api_may_come_twice(nats_cluster):
    async with connected(nats_cluster.url) as connection:
        await streams.create(connection, 3)
        for push in (True, False):
            config = {"name": f"c{push}", "filter_subject": keys.jobs("dc1"), "ack_policy": "none", "mem_storage": True}
            config |= {"num_replicas": 1, "inactive_threshold": 10**10}
            if push:
                config |= {"deliver_subject": connection.client.new_inbox(), "deliver_policy": "last_per_subject"}
                config |= {"flow_control": True, "idle_heartbeat": 10**9, "max_deliver": 1}
            request = {"stream_name": keys.STATE, "config": config, "action": "create"}
            method = f"CONSUMER.CREATE.{keys.STATE}.c{push}.{keys.jobs('dc1')}"
            made = await asyncio.gather(*[connection.api(method, request) for _ in range(2)])
            made.append(await connection.api(method, request))
            assert {one["name"] for one in made} == {f"c{push}"}


async def test_a_server_that_comes_late_or_again_is_connected_and_subscriptions_go_on(nats):
    received = []

    async def on_message(message):
        received.append(message.data)

    await asyncio.to_thread(nats.kill)
    connection = Connection(settings(nats.url), "collector")
    async with in_background(connection.run()):
        with pytest.raises(ClusterUnavailable):
            await connection.connect(0.5)
        assert connection.describe()["ok"] is False
        async with connection.subscribed("cor.v1.want", on_message):
            for generation in (1, 2):
                await asyncio.to_thread(nats.start)
                await connection.connect(10)
                assert connection.generation == generation
                received.clear()
                await connection.publish("cor.v1.want", b"id")
                await eventually(lambda: received == [b"id"])
                await asyncio.to_thread(nats.kill)
                await eventually(lambda: not connection.connected)
                with pytest.raises(ClusterUnavailable):
                    await connection.publish("cor.v1.want", b"lost")


async def test_a_server_that_stops_reading_is_left_although_messages_wait_for_it(nats):
    async with Proxy(nats.port, receive_buffer=4096) as proxy:
        url = f"nats://127.0.0.1:{proxy.port}"
        async with running(Connection(settings(url), "collector", ping_every=0.2, replace_after=0.5)) as connection:
            proxy.black_hole()
            proxy.heal()  # for new connections
            for _ in range(38):  # More than the buffers of both sockets.
                await connection.publish("cor.v1.want", bytes(100_000))
            await eventually(lambda: not connection.connected)
            await connection.connect(10)


async def test_a_tls_connection_into_a_black_hole_is_replaced():
    """Its end hangs: the client waits for the other side to close, and cancels that wait."""
    with DeployedNats() as server:
        async with Proxy(server.port) as proxy:
            section = server.section("collector-dc1")
            section = replace(section, url=NatsUrl.parse(f"tls://127.0.0.1:{proxy.port}"))
            async with running(Connection(section, "collector", ping_every=0.2, replace_after=0.5)) as connection:
                generation = connection.generation
                proxy.black_hole()
                proxy.heal()  # for new connections
                await eventually(lambda: connection.generation > generation and connection.connected)


async def test_other_tasks_run_between_two_messages_that_take_long_and_arrived_together(nats):
    turns, between = 0, list[int]()

    async def slow(_: object) -> None:
        nonlocal turns
        between.append(turns)
        turns = 0
        time.sleep(1.5 * TURN)  # noqa: ASYNC251 - what a handler computes

    async with connected(nats.url) as connection, connection.subscribed("test.flood", slow):
        for _ in range(20):
            await connection.publish("test.flood", b"")
        while len(between) < 20:
            turns += 1
            await asyncio.sleep(0)
    assert 0 not in between[1:], between


async def test_a_server_that_is_none_is_left_as_soon_as_one_answers(nats):
    asked = []

    async def answer(_, writer):
        asked.append(writer)
        writer.write(bytes(200_000))

    async with running(Connection(settings(nats.url), "collector", replace_after=1.0)) as connection:
        await asyncio.to_thread(nats.kill)
        server = await asyncio.start_server(answer, "127.0.0.1", nats.port)
        await eventually(lambda: asked)
        await asyncio.sleep(0.1)
        server.close()
        for writer in asked:
            writer.transport.abort()
        await server.wait_closed()
        await asyncio.to_thread(nats.start)
        await connection.connect(15)


@pytest.mark.parametrize(
    "begin",
    [b"MSG ", b"INFO {", b"MSG a 1 9999999999\r\n", b"INFO []\r\n", b"INFO " + b"[" * 30_000 + b"\r\n", b"-ERR \r\n"],
)
async def test_a_server_whose_line_or_message_does_not_end_or_is_none_is_left(begin, caplog):
    """Long before it would be left for its silence. Some MB wait in the buffers of the kernel."""
    sent: list[int] = []

    async def flood(reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(
                b'INFO {"server_id":"x","version":"2.15.0","proto":1,"headers":true,"max_payload":1048576}\r\n'
            )
            while not (await reader.readline()).startswith(b"PING"):
                pass
            writer.write(b"PONG\r\n" + begin)
            sent.append(0)
            number = len(sent) - 1
            while sent[number] < 60_000_000:
                writer.write(b"a" * 100_000)
                await writer.drain()
                sent[number] += 100_000
        writer.close()

    server = await asyncio.start_server(flood, "127.0.0.1", 0)
    async with server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with in_background(Connection(settings(url), "collector").run()):
            await eventually(lambda: len(sent) > 1)
    assert sent[0] < 7_000_000
    assert [record for record in caplog.records if record.name.startswith("nats")] == []


async def test_a_server_that_is_full_is_named_whatever_ends_the_connection_afterwards(nats):
    nats.settings = ("max_connections: 1",)
    await asyncio.to_thread(nats.kill)
    await asyncio.to_thread(nats.start)
    async with connected(nats.url):
        second = Connection(settings(nats.url), "collector")
        async with in_background(second.run()):
            await eventually(lambda: "max_connections" in second.describe()["error"])
            for _ in range(20):
                await asyncio.sleep(0.1)
                assert re.search("max_connections (of the server )?are in use", second.describe()["error"])


async def test_a_refused_login_is_a_reported_state_that_ends_with_the_right_password():
    with Nats('authorization { user: "a", password: "b" }') as server:
        connection = Connection(settings(server.url), "collector")
        async with in_background(connection.run()):
            await eventually(lambda: "uthorization" in connection.describe().get("error", ""))
            server.settings = ()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await connection.connect(10)


async def test_errors_of_a_server_that_do_not_end_write_few_lines_and_lose_no_message(caplog):
    user = '{ user: "a", password: "b", permissions: { publish: { deny: "secret.>" } } }'
    with Nats(f"authorization {{ users: [ {user} ] }}", "no_auth_user: a") as server:
        async with connected(server.url) as connection:
            for n in range(200):
                await connection.client.publish(f"secret.{n}", b"x" * 300)
            await connection.client.flush(60)
            await eventually(lambda: "ermissions" in caplog.text)
            await connection.client.flush(60)
    said = [record.getMessage() for record in caplog.records if "NATS reports" in record.getMessage()]
    assert len(said) == 1
    assert len(said[0]) < 400


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one of nats-py's own
async def test_a_connection_whose_login_is_refused_ends_with_one_cancellation_whenever_that_comes():
    async def refuse(reader, writer):
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, EOFError):
            writer.write(b'INFO {"version":"2.15.0","proto":1,"max_payload":1048576,"auth_required":true}\r\n')
            await reader.readuntil(b"PING")
            writer.write(b"-ERR 'Authorization Violation'\r\n")

    server = await asyncio.start_server(refuse, "127.0.0.1")
    async with server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for turns in range(60):  # of the event loop; the first attempt fails before the last of them
            task = asyncio.create_task(Connection(settings(url), "collector").run())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task}, timeout=PATIENCE)
            assert task.cancelled(), f"cancelled in turn {turns}, it runs on"
    gc.collect()  # of the streams that nats-py leaves open: no other test is to blame for them


async def test_headers_that_are_larger_than_those_of_any_stream_are_left_out(nats):
    queue: asyncio.Queue[Msg] = asyncio.Queue()
    headers = [b"NATS/1.0\r\n" + b"a:b\r\n" * count + b"\r\n" for count in (10, 30_000)]
    async with connected(nats.url) as connection, connection.subscribed("test.headers", queue.put):
        await handled(connection)
        await send(nats.port, [(b"test.headers", one, b"x") for one in headers])
        async with asyncio.timeout(PATIENCE):
            received = [await queue.get(), await queue.get()]
    assert [(one.headers, one.data) for one in received] == [({"a": "b"}, b"x"), (None, b"x")]


@pytest.mark.parametrize("payload", [b"x" * 100, b""])
async def test_messages_that_come_too_fast_are_counted_reported_and_logged_once(nats, caplog, payload):
    handled = asyncio.Event()

    async def slow(_: object) -> None:
        await handled.wait()

    def dropped() -> float:
        return REGISTRY.get_sample_value("correlator_cluster_messages_dropped_total") or 0.0

    async with connected(nats.url) as connection, connection.subscribed("cor.v1.*.line", slow, pending=1_000):
        before = dropped()
        for _ in range(200):
            await connection.publish(keys.line("dc1"), payload)
        part = await eventually(lambda: (found := connection.describe()).get("dropped", 0) > 100 and found)
        assert not part["ok"]
        assert part["subject"] == "cor.v1.dc1.line"
        assert dropped() - before == connection.describe()["dropped"]
        handled.set()
    assert len([record for record in caplog.records if "NATS reports" in record.getMessage()]) == 1
