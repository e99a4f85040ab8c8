"""The timings of the MQTT sink, in seconds. Tests use shorter ones."""

from __future__ import annotations

from dataclasses import dataclass

from correlator.sinks.lateness import LATE_AFTER, ON_TIME_BELOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Deadlines and intervals of one sink, in seconds."""

    keepalive: int = 5
    """Silence after which the client pings the broker, and after which it gives up on the answer."""

    connect_timeout: float = 10.0
    """For name resolution, socket and CONNACK together."""

    close_timeout: float = 1.0
    """To send DISCONNECT."""

    publish_timeout: float = 5.0
    """To wait for PUBACK."""

    call_timeout: float = 5.0
    """To wait for SUBACK and UNSUBACK."""

    steady_after: float = 10.0
    """A connection must last so long to reset the retry delay. A broker that closes at once is not hammered."""

    index_interval: float = 10.0
    """Between two messages with the position in the index."""

    quiet_after: float = 1.0
    quiet_within: float = 60.0
    """MQTT does not mark the end of the retained messages: assume it after this time without one, or in total."""

    late_check_interval: float = 1.0
    """Between two checks of how long messages have waited."""

    late_after: float = LATE_AFTER
    """What has waited for longer is late."""

    on_time_below: float = ON_TIME_BELOW
    """The broker keeps up again once nothing has waited for longer."""

    republish_within: float = 60.0
    """What is published again over a new connection is late after this time."""

    flush_within: float = 4.0
    goodbye_within: float = 7.0
    """At the end: to publish what is pending, and for all last messages together."""


DEFAULT = Timings()
