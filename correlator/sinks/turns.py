"""The work of requests runs in classes, each with a bound for all clients and for each address, and in a fair order.

Problem. The event loop runs whatever is ready before it reads from its sockets again: 200 handlers of 1 ms are a stop
of 200 ms, and rows, probes and websockets wait for it. A queue in order of arrival serves the client that asks most.

Model. Work that may take long waits for a turn of its class (`Turns`). A class runs a few pieces at once, and begins
the next one only in the next round of the event loop, so that everything else runs in between. Addresses take turns:
one with a single request waits for one piece of each other address, not for all that these have asked for. Probes
(`/health/*`) wait for each other only, and live rows for nothing.

| class | what runs in it | bound |
|---|---|---|
| `connections` | the begin of connections, with their handshakes, but of probes | three at once, 10 ms each |
| `begin` | the begin of every request but probes | a few in one round of the event loop |
| `Bursts` | the parsing of what connections send, of addresses in turn | 64 pieces or 4 ms a round |
| `probes` | the begin of probes | a few in one round of the event loop |
| `lists` | matching and encoding of lists and searches in memory, never a query of the database | one at a time |
| `queries` | what a request asks the database for jobs, and for lines of any job | eight at once, four of one address |
| `operations` | questions about operations: a daemon has them in memory, a gateway asks collectors | the same |
| `waited_ids` | what the database is asked about IDs that requests wait for | one at a time |
| `messages` | messages that websocket clients send; a connection has one at a time | five at once |
| `parts` | parts of snapshots and of what clients missed; a subscription has one at a time | one at a time |
| `held` | requests that wait for a job to appear or to change | a number of requests |
| `downloads` | logs that are sent as text | a number of requests |
| `replies` | replies that clients have not read | bytes; not a queue: a list is refused while its address is above |
| `open_replies` | the same of replies that need no token, e.g. files; a file is refused |
| `handshakes` | TLS handshakes that have not ended | a number; not a queue: one ends for the next |
| `newcomers` | websockets whose `hello` has not been accepted | a number; not a queue: one ends for the next |
| `unknown` | what websockets have sent whose `hello` has not been accepted | bytes |
| `unhandled` | what other websockets have sent that has not been handled | bytes |

Invariants. Every wait has a deadline. What exceeds a bound is refused with 429 (the address's share) or 503 (all), and
`Retry-After`. Everything runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from correlator.errors import CorrelatorError
from correlator.model.published import PublishedJob
from correlator.model.replies import Resolved
from correlator.pipeline.hub import Hub, Shows

AT_ONCE = 0.004
"""Seconds of matching or encoding before the event loop runs other tasks."""


async def encoded(parts: Iterable[bytes], most: int | None = None) -> tuple[list[bytes], bool]:
    """Encode `parts` one by one, up to `most` bytes, and at least one. Returns them, and True if some were left out.

    Yields to the event loop every `AT_ONCE` seconds.
    """
    made: list[bytes] = []
    size, began = 0, time.monotonic()
    for part in parts:
        size += len(part) + 1
        if most is not None and made and size > most:
            return made, True
        made.append(part)
        if time.monotonic() - began > AT_ONCE:
            await asyncio.sleep(0)
            began = time.monotonic()
    return made, False


NEWCOMERS = 1_000
"""Websockets whose `hello` has not been accepted. Each is some eighty objects, which a garbage collection visits."""


HANDSHAKES = 1_000
"""TLS handshakes that have not ended. What a client sends in its handshake, up to 180 kB of memory, is kept until the
handshake ends. With 300, waves of 2,000 ordinary clients took longer."""


HIDDEN_AFTER = 0.5
"""Seconds: longer than a lookup of an ID takes as a rule."""


class Refused(CorrelatorError):
    """A request exceeds a bound. `all_clients`: it is the bound of all of them, else that of the client's address."""

    def __init__(self, detail: str, *, all_clients: bool) -> None:
        super().__init__(detail)
        self.all_clients = all_clients


class Turns:
    """One class of work: at most `at_once` pieces run, `each` of one address, and addresses take turns.

    At most `waiting` pieces wait, `waiting_each` of one address, `within` seconds each. `what` names the class. The
    attributes `at_once`, `each`, `most`, `most_each` and `within` are these bounds.

    Invariant: while a piece could run, none that could run waits.
    """

    def __init__(
        self,
        what: str,
        *,
        at_once: int,
        each: int | None = None,
        waiting: int = 10_000,
        waiting_each: int = 5_000,
        within: float = 30.0,
    ) -> None:
        self._what = what
        self.at_once = self._free = at_once
        self.each = each
        self.most = waiting
        self.most_each = waiting_each
        self.within = within
        self._running: Counter[str] = Counter()
        """By address, if there is a bound for each."""
        self._waiting: OrderedDict[str, dict[asyncio.Future[None], None]] = OrderedDict()
        """By address, in order of arrival; the address whose turn is next comes first."""
        self._count = 0
        self._ended: list[str] = []
        """The addresses of the pieces that ended in this round of the event loop."""

    @property
    def waiting(self) -> int:
        """Pieces that wait."""
        return self._count

    @property
    def addresses(self) -> int:
        """Addresses of which pieces wait."""
        return len(self._waiting)

    def turn(self, address: str) -> Turn:
        """Run a block as a piece of work for `address`, once its turn has come: ``async with turns.turn(address):``.

        Raises:
            Refused: Too many wait, or the turn did not come within the seconds of the class.
        """
        return Turn(self, address)

    async def round(self, address: str) -> None:
        """Wait for a turn that lasts until the caller's next `await`. For the errors see `turn`."""
        if not self.start_now(address):
            await self.wait(address)
        self.end(address)

    def start_now(self, address: str) -> bool:
        """Begin a piece of work now. False if it has to wait."""
        if not self._free or self._is_full(address):
            return False
        self._occupy(address)
        return True

    async def wait(self, address: str) -> None:
        """Begin a piece of work once its turn has come. For the errors see `turn`."""
        mine = self._waiting.get(address, {})
        if len(mine) >= self.most_each or self._count >= self.most:
            raise self._refused(all_clients=self._count >= self.most)
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(address, {})[turn] = None
        self._count += 1
        timer = loop.call_later(self.within, self._expire, address, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting.get(address, ()):
                self._leave(address, turn)
            elif not turn.cancelled() and turn.exception() is None:
                self._give_back([address])  # It came, and nobody is here to use it.
            raise
        finally:
            timer.cancel()

    def end(self, address: str) -> None:
        """A piece of work has ended: another one begins in the next round of the event loop."""
        if not self._ended:
            asyncio.get_running_loop().call_soon(self._next_round)
        self._ended.append(address)

    def _next_round(self) -> None:
        ended, self._ended = self._ended, []
        self._give_back(ended)

    def _expire(self, address: str, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            self._leave(address, turn)
            turn.set_exception(self._refused(all_clients=True))

    def _leave(self, address: str, turn: asyncio.Future[None]) -> None:
        del self._waiting[address][turn]
        self._count -= 1
        if not self._waiting[address]:
            del self._waiting[address]

    def _is_full(self, address: str) -> bool:
        """True if as many pieces of this address run as may."""
        return self.each is not None and self._running[address] >= self.each

    def _occupy(self, address: str) -> None:
        self._free -= 1
        if self.each is not None:
            self._running[address] += 1

    def _give_back(self, addresses: Sequence[str]) -> None:
        self._free += len(addresses)
        if self.each is not None:
            self._running.subtract(addresses)
            self._running = +self._running
        while self._free and (following := self._next()) is not None:
            turn = next(iter(self._waiting[following]))
            self._leave(following, turn)
            if following in self._waiting:
                self._waiting.move_to_end(following)
            if not turn.done():  # else its request was cancelled in this round
                self._occupy(following)
                turn.set_result(None)

    def _next(self) -> str | None:
        """The address whose turn it is. Passes over at most `at_once` addresses: those that run `each` already."""
        return next((a for a in self._waiting if not self._is_full(a)), None)

    def _refused(self, *, all_clients: bool) -> Refused:
        of = "" if all_clients else " of this address"
        return Refused(f"too many {self._what}{of} wait: repeat the request later", all_clients=all_clients)


class Turn:
    """One piece of work, as a context manager: see `Turns.turn`."""

    __slots__ = ("_address", "_turns")

    def __init__(self, turns: Turns, address: str) -> None:
        self._turns = turns
        self._address = address

    async def __aenter__(self) -> None:
        if not self._turns.start_now(self._address):
            await self._turns.wait(self._address)

    async def __aexit__(self, *_: object) -> None:
        self._turns.end(self._address)


class Rounds:
    """Calls that come in bursts: `at_once` of them in one round of the event loop, in order."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waiting: deque[Callable[[], object]] = deque()

    def add(self, call: Callable[[], object]) -> None:
        """Make the call in one of the next rounds."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        self._waiting.append(call)

    def _run(self) -> None:
        for _ in range(min(self._at_once, len(self._waiting))):
            self._waiting.popleft()()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._run)


class Bursts:
    """Calls that come in bursts: `at_once` in one round of the event loop, or fewer that take `seconds`.

    Addresses take turns. While there is room in a round, a call is made at once.
    """

    def __init__(self, at_once: int, seconds: float) -> None:
        self._at_once = at_once
        self._seconds = seconds
        self._waiting: OrderedDict[str, deque[Callable[[], object]]] = OrderedDict()
        """By address; the address whose turn is next comes first."""
        self._made = 0
        self._took = 0.0
        """The calls of this round, and the seconds that they took."""

    def add(self, address: str, call: Callable[[], object]) -> bool:
        """Make the call now, or in one of the next rounds, after earlier calls of its address. True if it waits."""
        if not self._waiting and self._has_room:
            self._make(call)
            return False
        self._waiting.setdefault(address, deque()).append(call)
        return True

    @property
    def _has_room(self) -> bool:
        return self._made < self._at_once and self._took < self._seconds

    def _make(self, call: Callable[[], object]) -> None:
        if not self._made:
            asyncio.get_running_loop().call_soon(self._next_round)
        self._made += 1
        began = time.monotonic()
        try:
            call()
        finally:
            self._took += time.monotonic() - began

    def _next_round(self) -> None:
        self._made, self._took = 0, 0.0
        while self._waiting and self._has_room:
            address, calls = next(iter(self._waiting.items()))
            call = calls.popleft()
            if calls:
                self._waiting.move_to_end(address)
            else:
                del self._waiting[address]
            self._make(call)


class Held:
    """Amounts that clients hold, e.g. requests or bytes: at most `most` in all, and `each` by one address."""

    def __init__(self, what: str, *, most: int, each: int) -> None:
        self._what = what
        self.most = most
        self.each = each
        self._held: Counter[str] = Counter()
        self.total = 0
        """Held by all addresses."""

    def check(self, address: str) -> None:
        """Raise `Refused` if the address, or all of them, hold as much as they may."""
        if self.total >= self.most:
            raise Refused(f"too many {self._what}: repeat the request later", all_clients=True)
        if self._held[address] >= self.each:
            raise Refused(f"too many {self._what} of this address: repeat the request later", all_clients=False)

    @contextlib.contextmanager
    def holding(self, address: str, amount: int = 1) -> Iterator[None]:
        """Count `amount` while the block runs."""
        self._add(address, amount)
        try:
            yield
        finally:
            self.give_back(address, amount)

    def take(self, address: str, amount: int) -> None:
        """Count `amount` until `give_back`. Raises as `check`."""
        self.check(address)
        self._add(address, amount)

    def give_back(self, address: str, amount: int) -> None:
        """Count `amount` no longer."""
        self.total -= amount
        self._held[address] -= amount
        if not self._held[address]:
            del self._held[address]

    def _add(self, address: str, amount: int) -> None:
        self._held[address] += amount
        self.total += amount


class Newcomers:
    """Connections of clients that are not known yet: at most `most`.

    A further one ends the one that has been here longest, of the address that has most: a client that says who it is
    stays for a moment, and those that never do make room for it. `enter` may be called once for each `end`.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._of: dict[str, dict[Callable[[], object], None]] = {}
        """By address, those that have been here longest first."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def enter(self, address: str, end: Callable[[], object]) -> None:
        """Count a connection until `leave`, or until it has to make room: then `end` is called."""
        self._of.setdefault(address, {})[end] = None
        self._count += 1
        if self._count > self.most:
            crowded = max(self._of, key=lambda one: len(self._of[one]))
            oldest = next(iter(self._of[crowded]))
            self.leave(crowded, oldest)
            oldest()

    def leave(self, address: str, end: Callable[[], object]) -> None:
        """The client is known, or has gone. May be called more than once."""
        if end in (here := self._of.get(address, {})):
            del here[end]
            self._count -= 1
            if not here:
                del self._of[address]


class Work:
    """The classes of one listener. At a gateway, all hubs share them.

    `newcomers`: websockets without a `hello`. `handshakes`: those of TLS that have not ended.
    """

    def __init__(self, *, newcomers: int = NEWCOMERS, handshakes: int = HANDSHAKES) -> None:
        self.connections = Turns("connections", at_once=3, waiting=1_000_000, waiting_each=1_000_000)
        self.begin = Turns("requests", at_once=8, waiting=20_000, waiting_each=20_000)
        self.probes = Turns("probes", at_once=32, waiting=20_000, waiting_each=20_000)
        self.lists = Turns("lists", at_once=1, waiting=4_000, waiting_each=1_000)
        self.queries = Turns("searches of the database", at_once=8, each=4, waiting=8_000, waiting_each=4_000)
        self.operations = Turns("questions about operations", at_once=8, each=4, waiting=8_000, waiting_each=4_000)
        self.waited_ids = Turns("lookups of IDs", at_once=1, waiting=10_000, waiting_each=5_000, within=60.0)
        self.messages = Turns("messages", at_once=5, waiting=1_000_000, waiting_each=1_000_000)
        self.parts = Turns("clients", at_once=1, waiting=1_000_000, waiting_each=1_000_000, within=60.0)
        self.held = Held("requests that wait", most=10_000, each=5_000)
        self.downloads = Held("logs that are sent as text", most=16, each=4)
        self.replies = Held("replies that have not been read", most=64 << 20, each=16 << 20)
        self.open_replies = Held("replies without a token that have not been read", most=32 << 20, each=4 << 20)
        self.handshakes = Newcomers(handshakes)
        self.newcomers = Newcomers(newcomers)
        self.unknown = Held("bytes of websockets without a hello", most=64 << 20, each=16 << 20)
        self.unhandled = Held("bytes of messages that have not been handled", most=64 << 20, each=16 << 20)

    async def find(
        self, hub: Hub, name: str, address: str, shows: Shows | None = None
    ) -> tuple[PublishedJob, Resolved] | None:
        """As `Hub.find`, for a client with this address: from memory at once, else in a turn of `queries`.

        To a client that may not see every job (`shows`), the time does not say whether there is one that it must not
        see: the database is asked in any case, and that nothing was found is said after `HIDDEN_AFTER` seconds.

        Raises:
            Refused: The turn did not come.
            SourceUnavailable: Only the database could answer, and it does not.
        """
        if (known := hub.find_certain(name)) is not None and (shows is None or shows(known[0])):
            return known
        clock = asyncio.get_running_loop().time
        began = clock()
        async with self.queries.turn(address):
            found = await hub.find(name, shows)
        if found is None and shows is not None:
            await asyncio.sleep(began + HIDDEN_AFTER - clock())
        return found
