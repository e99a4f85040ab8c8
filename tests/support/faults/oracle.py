"""The oracle: compares what was committed with everything that the daemon shows and has sent.

It knows the tables, and the rows that it was asked to remember before they were deleted. It compares them with the jobs
and steps over REST and of a connected client, the retained states, each job's count of warnings and errors and its last
message, its log lines over REST, the events of lifecycle rows, and the lines that a client received.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

import orjson

from tests.support.client_fold import Document
from tests.support.daemon import Daemon
from tests.support.expected_jobs import differences
from tests.support.faults.traffic import Traffic
from tests.support.faults.watchers import MqttWatcher, RowKey, WebsocketWatcher, published_at
from tests.support.mariadb import Database
from tests.support.replay import MariaDBReplayer, Tables
from tests.support.subscriptions import documents, lines_of, same

KINDS = {
    f"{what} {how}": f"{what}.{how}"
    for what, hows in (("job", "started completed failed cancelled"), ("step", "started completed failed skipped"))
    for how in hows.split()
}

WITH_ROW = frozenset(KINDS.values())
"""The kinds of event that a lifecycle row gives."""


@dataclass(frozen=True)
class Row:
    """A log row that was committed and belongs to a job. `present`: it still is in the table."""

    id: int
    at: str
    job_id: str
    level: str
    message: str
    present: bool

    @property
    def key(self) -> RowKey:
        return self.id, self.at

    @property
    def kind(self) -> str | None:
        """Of its event, where it is a lifecycle row."""
        return KINDS.get(self.message.lower())


@dataclass
class Finding:
    """The differences from what was committed. `lost`: rows; `wrong`: everything else, in words."""

    rows: int = 0
    lost: set[RowKey] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.lost and not self.wrong

    def miss(self, rows: list[Row], where: str) -> None:
        """`rows` are missing `where`."""
        if rows:
            self.lost |= {row.key for row in rows}
            self.wrong.append(f"{len(rows)} rows missing {where}, such as {rows[0]}")


class Oracle:
    """The oracle of one database, one daemon and its clients.

    `times`: compare times, because `ts` is UTC. `drops`: lines may be dropped, if their number is sent.
    """

    def __init__(
        self,
        database: Database,
        daemon: Daemon,
        reader: WebsocketWatcher,
        listener: MqttWatcher | None,
        traffic: Traffic,
    ) -> None:
        self._database = database
        self._daemon = daemon
        self._reader = reader
        self._listener = listener
        self._traffic = traffic
        self._gone: dict[RowKey, Row] = {}
        self._doubtful: dict[RowKey, Row] = {}
        self._forgiven: set[int] = set()
        self.times = True
        self.drops = False

    async def tables(self) -> Tables:
        """The four tables as they are now."""
        async with MariaDBReplayer.connect(self._database) as replayer:
            return await replayer.tables()

    async def remember(self) -> list[Row]:
        """Remember the rows that exist now as committed. Returns them."""
        rows = _rows(await self.tables())
        self._gone |= {key: Row(**{**vars(row), "present": False}) for key, row in rows.items()}
        return list(rows.values())

    async def forgive(self) -> None:
        """Accept that the server has lost rows that it had acknowledged: what was published of them was true then."""
        tables = await self.tables()
        present = _rows(tables)
        self._doubtful |= {key: row for key, row in self._gone.items() if key not in present}
        self._gone = {}
        self._forgiven |= self._traffic.acknowledged - _numbers(tables)

    async def check(self) -> Finding:
        """Compare everything once, while nothing is written."""
        tables = await self.tables()
        present = _rows(tables)
        rows = self._gone | present
        found = Finding(rows=len(rows))
        if not self._gone:
            unkept = self._traffic.acknowledged - _numbers(tables) - self._forgiven
            assert not unkept, f"the server has lost {len(unkept)} rows that it had acknowledged"
        shown = await documents(self._daemon)
        of_times = (" started_at: ", " ended_at: ")
        unlike = differences(tables, shown)
        found.wrong += unlike if self.times else [u for u in unlike if not any(words in u for words in of_times)]
        self._counts(found, shown, rows)
        self._reader_holds(found, shown, rows)
        if self._listener is not None:
            self._broker_holds(found, self._listener, shown, rows)
        if found.clean:
            await self._lines(found, shown, present)
        return found

    def _counts(self, found: Finding, shown: dict[str, Document], rows: dict[RowKey, Row]) -> None:
        mine: dict[str, list[Row]] = defaultdict(list)
        doubtful: dict[str, list[Row]] = defaultdict(list)
        for job_id, row in ((row.job_id, row) for row in rows.values()):
            mine[job_id].append(row)
        for job_id, row in ((row.job_id, row) for row in self._doubtful.values()):
            doubtful[job_id].append(row)
        for job_id, document in shown.items():
            for member, level in (("warnings", "WARN"), ("errors", "ERROR")):
                least, more = (sum(r.level == level for r in some[job_id]) for some in (mine, doubtful))
                if not least <= document[member] <= least + more:
                    found.wrong.append(f"{job_id} {member}: {document[member]}, not {least}")
            if not self.times or not mine[job_id]:
                continue
            message = document["last_message"]
            last = max(mine[job_id], key=lambda row: (row.at, row.id))
            right = {(row.message, row.at) for row in (last, *doubtful[job_id])}
            if message is None or (message["text"], message["at"]) not in right:
                found.wrong.append(f"{job_id} last message: {message}, not {last}")

    def _reader_holds(self, found: Finding, shown: dict[str, Document], rows: dict[RowKey, Row]) -> None:
        held = self._reader.jobs
        unlike = [i for i in held.keys() | shown.keys() if not same(held.get(i, {}), shown.get(i, {}))]
        if unlike:
            found.wrong.append(f"{len(unlike)} jobs of the reader are not as REST shows them, such as {unlike[0]}")
        if self._reader.dropped and not self.drops:
            found.wrong.append(f"{self._reader.dropped} log lines dropped for a reader that is not slow")
        if self._reader.connections == 1:
            ids = {i for i, _ in self._reader.lines}
            received = self._reader.lines if self.times else ids
            missing = [
                r for r in rows.values() if (r.key if self.times else r.id) not in received and r.job_id in shown
            ]
            if not (self.drops and len(missing) == self._reader.dropped):
                found.miss(missing, "from the reader's log lines")

    def _broker_holds(
        self, found: Finding, listener: MqttWatcher, shown: dict[str, Document], rows: dict[RowKey, Row]
    ) -> None:
        events = listener.events.keys()
        due = [row for row in rows.values() if row.kind is not None and row.job_id in shown]
        found.miss([r for r in due if (r.id, str(r.kind), r.job_id) not in events], "from the events of MQTT")
        if listener.state() != "online":
            found.wrong.append(f"the broker holds that the daemon is {listener.state()}")
        states = {
            topic.split("/")[1]: {k: v for k, v in state.items() if k not in ("epoch", "seq")}
            for topic, state in listener.retained.items()
            if topic.startswith("job/")
        }
        unlike = [i for i in states.keys() | shown.keys() if not same(states.get(i, {}), shown.get(i, {}))]
        if unlike:
            found.wrong.append(f"{len(unlike)} retained states are not as REST shows them, such as {unlike[0]}")

    async def _lines(self, found: Finding, shown: dict[str, Document], present: dict[RowKey, Row]) -> None:
        due: dict[str, list[Row]] = defaultdict(list)
        for row in present.values():
            due[row.job_id].append(row)
        for job_id in shown:
            ids = [line["event_id"] for line in await lines_of(self._daemon, job_id, limit=1000)]
            found.miss([row for row in due[job_id] if row.id not in ids], f"from /jobs/{job_id}/events")
            if len(ids) != len(set(ids)):
                found.wrong.append(f"/jobs/{job_id}/events has a row twice")
            if more := set(ids) - {row.id for row in due[job_id]}:
                found.wrong.append(f"/jobs/{job_id}/events has rows of nobody: {sorted(more)[:5]}")


async def judged(oracle: Oracle, *, within: float) -> Finding:
    """The first finding without a difference, else the last one within so many seconds."""
    deadline = asyncio.get_running_loop().time() + within
    while True:
        try:
            found = await oracle.check()
        except (AssertionError, OSError) as error:
            found = Finding(wrong=[str(error)])
        if found.clean or asyncio.get_running_loop().time() > deadline:
            return found
        await asyncio.sleep(0.2)


def _rows(tables: Tables) -> dict[RowKey, Row]:
    """The log rows that belong to a job: by their column, else by their attrs."""
    found = {}
    for row in tables["log_events"].values():
        job_id = row["job_id"] or orjson.loads(str(row["attrs"] or "{}")).get("job_id")
        if job_id:
            one = Row(
                int(str(row["id"])),
                published_at(str(row["ts"])),
                str(job_id),
                str(row["level"]),
                str(row["message"]),
                True,
            )
            found[one.key] = one
    return found


def _numbers(tables: Tables) -> set[int]:
    return {orjson.loads(str(row["attrs"])).get("n", -1) for row in tables["log_events"].values() if row["attrs"]}
