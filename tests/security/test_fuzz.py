"""Whatever comes in from outside: rows, frames, queries, settings, a file. Nothing raises but what it may.

In `make test` each takes a few hundred examples; `make test-fuzz` gives each its share of $FUZZ_SECONDS.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import logging
import os
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import quote, unquote_to_bytes

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request
from aiohttp.typedefs import Handler
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from correlator.config import loading
from correlator.config.schema import leaves
from correlator.errors import BadRequest, ConfigError
from correlator.gateway.fleet import RemoteHub, RemoteStatus
from correlator.jobs import joblog
from correlator.jobs.index import Index
from correlator.jobs.remote import Marks, RemoteJobs
from correlator.model.facts import Kind, Reading
from correlator.model.messages import ClientMessage
from correlator.model.persisted import Cursor
from correlator.model.rows import JobRecord, LogRow, StepRecord
from correlator.pipeline.hub import Hub
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks.http import frames
from correlator.sinks.http.access import Access
from correlator.sinks.http.audit import Audit
from correlator.sinks.http.grants import GRANT, Grant
from correlator.sinks.http.requests import as_problem
from correlator.sinks.http.rest import Rest
from correlator.sinks.http.sse import EventStreams
from correlator.sinks.streaming.sessions import Streams
from correlator.sinks.turns import Work
from correlator.sources.archive.archive import DatabaseArchive
from correlator.sources.db.sqlite import SQLiteDatabase
from correlator.sources.tail import Tail
from correlator.state.checkpoint import MOMENT, Changes, Name, Saved, rows_of, saved_of
from correlator.state.checkpoint_file import Checkpoint
from tests.support import saved_index
from tests.support.answering_collectors import Collectors
from tests.support.documents import document_of, document_text

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
TARGETS = 5
now = 1_790_000_000_000_000


def fuzzed(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Try a property on `examples`; or, where $FUZZ_SECONDS is set, on others and others for its share of them."""

    def run_on(test: Callable[..., None]) -> Callable[..., None]:
        if not SECONDS:
            return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))(test)
        many = settings(
            max_examples=examples * 5, database=None, deadline=None, suppress_health_check=list(HealthCheck)
        )(test)

        @functools.wraps(many)
        def run(*fixtures: Any, **named: Any) -> None:
            until = time.monotonic() + SECONDS / TARGETS
            while time.monotonic() < until:
                many(*fixtures, **named)

        return run

    return run_on


# -- what is made up

odd = st.text(st.characters(exclude_categories=()), max_size=20)
"""With lone surrogates, controls, NUL."""

stored = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
"""What a column of text can hold, read."""

numbers = (
    st.integers(-(1 << 70), 1 << 70)
    | st.sampled_from([0, 1, -1, 1 << 31, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64])
    | st.floats()
)
values = st.recursive(
    st.none() | st.booleans() | numbers | odd,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd, inner, max_size=4),
    max_leaves=8,
)
ids = st.sampled_from(["a", "b", "gui", "legacy"]) | stored | st.just("x" * 255)
known_keys = st.sampled_from(
    ["job_id", "step_id", "percent", "error", "sequence", "step_name", "owner", "status", *joblog.EXTERNAL_ID_KEYS]
)
members = st.dictionaries(known_keys | odd, ids | st.integers(1, 5) | values, max_size=8)
json_texts = members.map(functools.partial(json.dumps, default=str))
deep = st.tuples(st.integers(1, 3000), st.sampled_from([("[", "]"), ('{"job_id":', "}")])).map(
    lambda d: d[1][0] * d[0] + "1" + d[1][1] * d[0]
)
cut = st.tuples(json_texts, st.integers(0, 200), odd, st.integers(0, 5)).map(
    lambda c: c[0][: c[1]] + c[2] + c[0][c[1] + c[3] :]
)
attrs = st.none() | json_texts | cut | deep | stored
times = st.none() | st.integers(-62_167_219_200_000_000, 253_402_300_799_999_999)
"""Microseconds of the years that a DATETIME has: 0 to 9999."""

messages = st.sampled_from([k.value.replace(".", " ") for k in Kind] + ["Job progress updated"]) | stored
rows = st.builds(
    LogRow,
    st.integers(1, (1 << 63) - 1),
    messages,
    times.map(lambda at: at or 0),
    level=st.sampled_from(["INFO", "warn", "ERROR", "trace", ""]) | stored,
    job_id=st.none() | ids,
    step_id=st.none() | st.integers(0, (1 << 63) - 1),
    attrs=attrs,
    external_job_id=st.none() | ids,
)
statuses = st.sampled_from(["pending", "running", "completed", "failed", "cancelled", ""]) | stored
records = st.builds(
    JobRecord,
    ids,
    **{n: st.none() | stored for n in ("operation", "job_type", "owner", "error_message", "job_category")},
    **{n: st.none() | ids for n in ("parent_job_id", "external_job_id", "context_id")},
    **dict.fromkeys(("started_at", "completed_at", "created_at", "updated_at", "canceled_at"), times),
    status=st.none() | statuses,
    metadata=attrs,
    percent_complete=st.none() | st.integers(-(1 << 31), 1 << 31),
)
steps = st.builds(
    StepRecord, st.integers(1, 1 << 62), stored, st.integers(-(1 << 31), 1 << 31), statuses, times, times,
    st.none() | stored,
)  # fmt: skip


# -- targets


@fuzzed(100)
@given(st.lists(rows | st.tuples(records, st.lists(steps, max_size=3)), min_size=1, max_size=8))
def test_no_row_stops_the_index_and_every_job_can_be_encoded(facts: list[Any]) -> None:
    index = Index()
    index.loading = False
    for fact in facts:
        observed_at = index.advance_clock()
        if isinstance(fact, LogRow):
            entry, reasons = joblog.read(fact, observed_at)
            assert all(reason.isidentifier() for reason in reasons)  # each becomes a label
            index.apply([entry], now)
        else:
            record, of_it = fact
            index.apply([Reading(record.job_id, observed_at, record, tuple(of_it))], now)
    index.expire(now + 3_600_000_000)
    for shown in index.published.all():
        document = document_of(shown)
        assert document["job_id"] == shown.job_id
        for name in shown.view.names():
            assert index.published.resolve(name) is not None


@fuzzed(150)
@given(
    st.text(st.characters(exclude_categories=()))
    | st.binary()
    | cut
    | deep
    | st.lists(
        st.dictionaries(
            st.sampled_from(["type", "id", "jobs", "status", "logs", "resume", "job_id", "version", "token"]) | odd,
            st.sampled_from(["hello", "subscribe", "unsubscribe", "get", "ping", ["a"], 1, None]) | values,
            max_size=6,
        ),
        max_size=4,
    ).map(json.dumps)
)
def test_no_frame_raises_but_a_bad_request(raw: str | bytes) -> None:
    try:
        said = [frames.decode(one) for one in frames.split(raw)]
    except BadRequest as error:
        words = str(error)
    else:
        assert all(isinstance(message, get_args(ClientMessage)) for message in said)
        return
    assert len(words.encode("utf-8")) < 4000, "it is sent to the client"


FILTERS = ("status", "job_type", "operation", "context_id", "parent_job_id")
PARAMETERS: list[tuple[str, tuple[str, ...]]] = [
    ("jobs", (*FILTERS, "limit", "since", "q", "steps")),
    ("jobs/{}", ("rev",)),
    ("jobs/{}/events", ("limit", "level", "from", "before", "step")),
    ("events", ("limit", "level", "since", "until")),
    ("resolve/{}", ()),
    ("stream", ("id", "status", "job_type", "context_id", "logs")),
    # By themselves, as whatever is wrong before them ends it.
    ("jobs", ("cursor",)),
    ("events", ("cursor",)),
    ("jobs/gui-1/events", ("after",)),
]
rights = st.sampled_from(
    ["running", "gui-1", "1", "0", "-1", "1e9", "nan", "2026-01-01T00:00:00Z", "WARN", "0001-01-01T00:00Z"]
)
encoded = (
    (odd | rights).map(lambda text: quote(text, safe="", errors="surrogatepass"))
    | st.binary(max_size=12).map(quote)
    | numbers.map(str)
)
places = (
    st.tuples(numbers, odd | st.just("a")).map(list)
    | st.tuples(st.dictionaries(st.sampled_from(["", "dc1", "dc2"]), numbers), numbers).map(list)
    | values
)
cursors = places.map(lambda p: in_base64(json.dumps(p).encode("utf-8", "replace")))
afters = st.tuples(
    st.just(1) | st.integers(0, 5), st.integers(-(1 << 63), (1 << 64) - 1), st.integers(0, (1 << 64) - 1),
    st.binary(max_size=9) | st.binary(max_size=9).map(zlib.compress),
).map(lambda place: in_base64(msgspec.msgpack.encode(place)))  # fmt: skip
by_name = {"cursor": cursors | encoded, "after": afters | encoded}


def queries(names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, str]]:
    """A parameter: one of `names`; where there is none, any."""
    known = [st.tuples(st.just(name), by_name.get(name, encoded)) for name in names]
    return st.one_of(known) if known else st.tuples(encoded, encoded)


targets = st.sampled_from(PARAMETERS).flatmap(
    lambda one: st.tuples(st.just(one[0]), st.just("gui-1") | encoded, st.lists(queries(one[1]), max_size=3))
)


def in_base64(raw: bytes) -> str:
    """As cursors and places are written."""
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


@pytest.fixture(params=["daemon", "gateway"])
def asked(request: pytest.FixtureRequest, appliance_file: Path) -> Iterator[Callable[[str], int]]:
    """Ask the REST endpoints of a daemon with a database, or of a gateway with such a collector; the status."""
    archive = DatabaseArchive(SQLiteDatabase(appliance_file))
    hub: Hub = LocalHub(Index(), archive)
    if request.param == "gateway":
        hub = RemoteHub(
            RemoteJobs(Marks()), RemoteStatus(list, lambda: None), Collectors(dc1=cast(Any, archive)).archive()
        )
    hub.status.loading = False
    rest = Rest(hub, Work(), Audit(time.monotonic))
    full = LocalHub(
        Index(), refusal=lambda: "there are too many"
    )  # It refuses each stream once it knows what is asked.
    events = EventStreams(full, Access(listen_host="here", clock=time.monotonic), Streams(full))
    with asyncio.Runner() as runner:

        def ask(target: str) -> int:
            path, _, _ = target.removeprefix("/api/v1/").partition("?")
            target += "&text=a" if path == "events" else ""
            name = path.partition("/")[2].removesuffix("/events")
            match = {"id": unquote_to_bytes(name).decode("utf-8", "replace")}
            position = unquote_to_bytes(target.partition("?")[2]).decode("utf-8", "replace")
            request = make_mocked_request("GET", target, match_info=match, headers={"Last-Event-ID": position})
            request[GRANT] = Grant()
            work: Handler
            if path == "stream":
                work = events.handle
            elif path == "events":
                work = rest.find_events
            elif path.endswith("/events"):
                work = rest.events
            else:
                work = {"jobs": rest.job if "/" in path else rest.jobs, "resolve": rest.resolve}[path.partition("/")[0]]
            try:
                return runner.run(work(request)).status
            except Exception as error:  # noqa: BLE001 - as every exception becomes a response
                return as_problem(error, request).status

        yield ask
        runner.run(archive.close())


def test_no_query_ends_in_an_internal_error(asked: Callable[[str], int], caplog: pytest.LogCaptureFixture) -> None:
    @fuzzed(150)
    @given(targets)
    def test(target: tuple[str, str, list[tuple[str, str]]]) -> None:
        path, name, query = target
        asked_for = f"/api/v1/{path.format(name)}?" + "&".join(f"{n}={v}" for n, v in query if n != "wait")
        assert asked(asked_for) in ((503, 400) if path == "stream" else (200, 304, 400, 404)), asked_for

    test()
    assert [one for one in caplog.records if one.levelno > logging.INFO] == []


beyond = st.integers(1 << 63, 1 << 66) | st.integers(-(1 << 66), -(1 << 63) - 1)
INTEGERS: tuple[Callable[[int], str], ...] = (
    lambda n: f"jobs?limit={n}",
    lambda n: "jobs?cursor=" + in_base64(json.dumps([n, "a"]).encode()),
    lambda n: f"events?limit={n}",
    lambda n: "events?cursor=" + in_base64(json.dumps([{"dc1": n}, 0]).encode()),
    lambda n: "events?cursor=" + in_base64(json.dumps([{"dc1": 1}, n]).encode()),
    lambda n: f"jobs/gui-1?rev={n}",
    *(lambda n, name=name: f"jobs/gui-1/events?{name}={n}" for name in ("limit", "from", "before", "step")),
    lambda n: "jobs/gui-1/events?after=" + in_base64(msgspec.msgpack.encode((1, 1 << 63 | n % (1 << 63), 0, b""))),
)


@pytest.mark.parametrize("target", INTEGERS, ids=range(len(INTEGERS)))
def test_an_integer_beyond_64_bits_is_refused_at_a_gateway_as_at_a_daemon(
    asked: Callable[[str], int], target: Callable[[int], str]
) -> None:
    @fuzzed(20)
    @example(1 << 63)
    @example((1 << 64) - 1)
    @example(-(1 << 63) - 1)
    @given(beyond)
    def test(number: int) -> None:
        assert asked(f"/api/v1/{target(number)}") == 400, number

    test()


setting_texts = (
    st.sampled_from(
        ["mysql://u@h/d", "mqtts://h:1", "sqlite:////x", "127.0.0.1:0", "[::1]:1", "10m", "auto", "UTC", "~", ""]
    )
    | odd
)
setting_values = st.one_of(
    setting_texts.map(json.dumps),
    setting_texts.map(lambda text: f"'{text}'"),
    numbers.map(str),
    st.sampled_from(["true", "[]", '["a", 1]', "{ca = 1}", "1979-05-27", "0x10", "inf"]),
)
lines = st.lists(
    st.tuples(st.sampled_from([dotted for dotted, _ in leaves()]) | odd, setting_values).map(" = ".join)
    | st.sampled_from(
        [
            f"{key} = '{text}'"
            for key in ("database.url", "mqtt.url", "database.password", "mqtt.password")
            for text in (
                "mysql://u:secret-word@h/d",
                "mqtt://u:secret-word@h",
                "u:secret-word@h/d",
                "u:secret-word@h:1",
            )
        ]
    )
    | st.sampled_from(["[database]", "[http]", "[mqtt.tls]", "[[jobs]]", "["])
    | odd,
    max_size=6,
)
environments = st.dictionaries(
    st.sampled_from(["CORRELATOR_" + dotted.upper().replace(".", "__") for dotted, _ in leaves()] + ["HOME"])
    | odd.map("CORRELATOR_X__".__add__),
    setting_texts,
    max_size=3,
)


@fuzzed(100)
@given(lines, lines, environments)
def test_no_settings_raise_but_a_problem_with_them(
    written: list[str], of_drop_in: list[str], environ: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = _written(Path(folder, "c.toml"), written)
        _written(Path(folder, "c.d/a.toml"), of_drop_in)
        try:
            text = repr(loading.load(file, {"HOME": folder, **environ}))
        except ConfigError as error:
            text = str(error)
    assert text
    assert "secret-word" not in text


def _written(file: Path, written: list[str]) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(written), encoding="utf-8", errors="surrogatepass")
    return file


LIES = (0, -1, 2**31, 2**53, 10**15, 2**63 - 1, -(2**63), 2**64 - 1, float("nan"), float("inf"), 1e308)
"""Numbers that no checkpoint has."""


@functools.cache
def checkpoint() -> bytes:
    """A file as a run of the daemon leaves it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c")
        file = Checkpoint(path, "s")
        file.open()
        cursor = Cursor(7, LogRow(7, "m", now), (((1, 2), (5, 5)),))
        file.write(saved_index.changes(saved_index.filled(6), cursor, n1=b'{"a":1}'))
        file.close()
        return path.read_bytes()


def go_on_from(saved: Saved) -> None:
    assert all([type(one) for one in event] == [str, bytes, bytes] for event in saved.events)
    index = Index()
    list(index.restore(saved.jobs, saved.legacy, saved.memory, now))
    index.loading = False
    index.expire(now)
    for shown in index.published.all():
        document_text(shown)
    Tail(poll=1.0, idle_poll=1.0).resume(saved.cursor)


@functools.cache
def checkpoint_rows() -> dict[Name, bytes]:
    cursor = Cursor(7, LogRow(7, "m", now), (((1, 2), (5, 5)),), (1, 2, 3, 4), b"marks", 5)
    rows = rows_of(saved_index.changes(saved_index.filled(6), cursor, n1=b'{"a":1}'))
    return {name: value for name, value in rows if value is not None}


def numbers_of(value: Any) -> list[tuple[Any, Any]]:
    """Where numbers are in the content of a row: what holds each, and its key or index there."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(value, key) for key, one in members if isinstance(one, int | float)] + [
        place for _, one in members for place in numbers_of(one)
    ]


SIZE_OF_STATE = [key for _, key in numbers_of(msgspec.msgpack.decode(checkpoint_rows()[MOMENT]))].index("memory")


@fuzzed(200)
@given(st.sampled_from(sorted(checkpoint_rows())), st.integers(0), st.sampled_from(LIES))
@example(MOMENT, SIZE_OF_STATE, 10**15)
def test_a_checkpoint_with_any_number_is_used_or_refused_soon(name: Name, which: int, lie: float) -> None:
    content = msgspec.msgpack.decode(checkpoint_rows()[name])
    if places := numbers_of(content):
        holder, key = places[which % len(places)]
        holder[key] = lie
    rows = {**checkpoint_rows(), name: msgspec.msgpack.encode(content)}
    with contextlib.suppress(ValueError, LookupError, TypeError):  # It is refused.
        saved = saved_of(rows.items())
        go_on_from(saved)


@fuzzed(50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([at for at, byte in enumerate(checkpoint()) if byte]),
            st.binary(min_size=1, max_size=6),
            st.sampled_from(["over", "cut", "put"]),
        ),
        min_size=1,
        max_size=6,
    )
)
@example([(checkpoint().index(b"CREATE TABLE rows"), b"\x80", "over")])  # SQLite's own words are no UTF-8 then
@example([(checkpoint().index(b"TEXT NOT NULL, value"), b"N", "over")])  # a column of numbers stores other keys
@example([(4096 + 8 + 2 * 4, b"\0", "over")])  # where the fifth row begins in its page: it is missing then
def test_a_damaged_checkpoint_is_used_or_set_aside(changes: list[tuple[int, bytes, str]]) -> None:
    raw = bytearray(checkpoint())
    for at, new, how in changes:
        match how:
            case "over":
                raw[at : at + len(new)] = new
            case "cut":
                del raw[at * 8 :]
            case _:
                raw[at:at] = new
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c")
        path.write_bytes(raw)
        file = Checkpoint(path, "s")
        try:
            saved = file.open()
            if saved is not None:
                go_on_from(saved)
            file.write(Changes(6.0, Cursor(8), Index().state(), {}, {}))
        except sqlite3.Error:  # as on a disk that fails: a state, and the saver sets the file aside
            file.set_aside("damaged")
            file.write(Changes(6.0, Cursor(8), Index().state(), {}, {}))
        finally:
            file.close()
        again = Checkpoint(path, "s")
        saved = again.open()
        again.close()
        assert saved is not None
        assert saved.cursor == Cursor(8)
