"""A listener without clients rests: an appliance that somebody once asked a gateway for costs nothing for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from correlator.jobs.index import Index
from correlator.pipeline.local_hub import LocalHub
from correlator.sinks.http.access import Access
from correlator.sinks.http.websocket import Websockets
from correlator.sinks.streaming.sessions import LAGGING_SWEEP_EVERY, SWEEP_EVERY, Streams
from tests.support.streams_harness import StreamClient


@pytest.fixture
def sweeps(monkeypatch):
    """The virtual times at which all clients were checked."""
    times: list[float] = []

    def checked(*_: object) -> Iterator[None]:
        times.append(now())
        yield

    monkeypatch.setattr("correlator.sinks.streaming.fanout.Fanout.sweep", checked)
    return times


def now() -> float:
    return asyncio.get_running_loop().time()


def test_streams_without_clients_rest_and_wake_at_once_for_the_first(loop, sweeps):
    streams = Streams(LocalHub(Index()))
    running = loop.create_task(streams.run())
    loop.run(100.0)
    assert len(sweeps) <= 13
    client, added = StreamClient(), loop.time()
    streams.add(client)
    sweeps.clear()
    loop.run(2.0)
    assert sweeps[0] - added <= SWEEP_EVERY
    assert 7 <= len(sweeps) <= 9
    streams.remove(client)
    sweeps.clear()
    loop.run(100.0)
    assert len(sweeps) <= 13
    assert not running.done()


def test_clients_are_checked_more_often_while_one_lags(loop, sweeps, monkeypatch):
    streams = Streams(LocalHub(Index()))
    running = loop.create_task(streams.run())
    streams.add(StreamClient())
    monkeypatch.setattr("correlator.sinks.streaming.fanout.Fanout.lagging", 1)
    loop.run(2.0)
    assert len(sweeps) >= 2.0 / LAGGING_SWEEP_EVERY - 2
    assert not running.done()


def test_every_step_of_a_long_sweep_is_a_sign_of_life(loop, monkeypatch):
    beats: list[float] = []
    monkeypatch.setattr("correlator.ops.heartbeats._Heartbeat.beat", lambda _: beats.append(now()))
    monkeypatch.setattr("correlator.sinks.streaming.fanout.Fanout.sweep", lambda *_: iter([None] * 50))
    streams = Streams(LocalHub(Index()))
    loop.create_task(streams.run())
    streams.add(StreamClient())
    loop.run(SWEEP_EVERY * 1.5)
    assert len(beats) >= 50


def test_websockets_without_connections_wake_every_five_seconds(loop, monkeypatch):
    hub = LocalHub(Index())
    beats: list[float] = []
    monkeypatch.setattr("correlator.ops.heartbeats._Heartbeat.beat", lambda _: beats.append(now()))
    loop.create_task(Websockets(hub, Access(listen_host="127.0.0.1", clock=now), Streams(hub)).run())
    loop.run(100.0)
    assert 19 <= len(beats) <= 21
