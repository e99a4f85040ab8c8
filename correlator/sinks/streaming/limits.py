"""The bounds of streaming: bytes, jobs, and seconds. One object for all parts of a listener; tests use smaller ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes are bytes, times are seconds."""

    lagging_over: int = 64 * 1024
    """A client with more than this in its transport lags."""

    caught_up_under: int = 16 * 1024
    """Below this in its transport, a lagging client gets the next part of its backlog."""

    too_slow_after: float = 60.0
    """A lagging client without progress for so long is disconnected."""

    large_buffer: int = 1024 * 1024
    too_slow_with_large_buffer_after: float = 5.0
    """Above `large_buffer` in its transport, a client is disconnected after this time without progress.

    Only a single large message can fill a buffer that far.
    """

    line_buffer: int = 768 * 1024
    """Log lines kept for one lagging client. Together with its transport's buffer this stays below 1 MiB."""

    max_line_buffers: int = 256
    """Lagging clients with a buffer for log lines. For others, lines are dropped and counted."""

    max_waiting_states: int = 100_000
    max_waiting_states_of_all: int = 1_000_000
    """Pending states of one lagging client and of all of them, about 250 bytes each.

    Each of n lagging clients may use 1/n of the total. A client that exceeds its part is disconnected: the snapshot
    that it gets after reconnecting is smaller than its backlog.
    """

    backlog_part: int = 32 * 1024
    backlog_parts_at_once: int = 16
    """A backlog is sent in parts of about this many bytes, and at most this many parts at once.

    One step of a sweep begins with no further client once it has sent so many.
    """

    swept_at_once: int = 1000
    """Clients that one step of a sweep visits at most."""

    snapshot_part: int = 64 * 1024
    max_snapshot_part: int = 200
    """A message of a snapshot has documents of about this many bytes in total, and at most this many documents."""

    max_visited: int = 2000
    """Jobs that one step of a snapshot visits at most, as few of them may match."""

    kept_parts: int = 16 * 1024 * 1024
    """Messages of snapshots that are kept for pages that open at once."""

    max_added: int = 256
    """Jobs that may be added, or change, before the shared order of snapshots, or of what was missed, is rebuilt."""

    max_missed: int = 20_000
    """Jobs that changed since the position of a client that resumes. For more of them a snapshot costs less."""

    max_subscriptions: int = 100
    """Subscriptions of one websocket."""

    max_ids: int = 500_000
    """IDs in the filters of all subscriptions together, about 400 bytes each."""

    find_within: float = 2.0
    """Time that `subscribe` waits for the database to find IDs that are not in memory."""

    max_delayed_handshakes: int = 200
    """Handshakes of an address that flooded which wait at once. Other clients may have the same address."""

    hello_within: float = 10.0
    """A websocket whose client has not said hello after this time is closed."""

    bookmark_every: float = 8.0
    """Time between bookmarks. The protocol promises at most 10 s."""

    unused_check_every: float = 5.0
    """Time between two checks of the websockets while there are none: of many appliances, few have clients."""

    ping_seconds: float = 25
    """A websocket client gets a ping after this time without a message from it."""

    pong_within: float = 12.5
    """Time that a client has to answer a ping. A lagging client is not pinged: it must read its backlog first."""


DEFAULT = Limits()
