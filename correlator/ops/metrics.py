"""The metrics, with their help texts. A job ID is never a label, and label values from the database are bounded.

A value that can only be computed on request is a function that a scrape calls. A series that an alert uses exists with
0 before its first increment, if its labels are known: Prometheus sees no increase in a series that begins at 1.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

# The _created series would double the number of series, and no alert uses them.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()

ProcessCollector(registry=REGISTRY)

counter = partial(Counter, registry=REGISTRY)
gauge = partial(Gauge, registry=REGISTRY)
histogram = partial(Histogram, registry=REGISTRY)


class OptionalGauge(Collector):
    """A gauge without labels whose value may be unknown. It has no series then: no alert and no mean counts it."""

    def __init__(self, name: str, documentation: str) -> None:
        self._name = name
        self._documentation = documentation
        self._value: Callable[[], float | None] = lambda: None
        REGISTRY.register(self)

    def set_function(self, value: Callable[[], float | None]) -> None:
        """Call `value` at each scrape."""
        self._value = value

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(self._name, self._documentation, self._value())


class Delays(Collector):
    """A histogram of many observations at a time: each costs a part of what `Histogram.observe` does."""

    def __init__(self, name: str, documentation: str, bounds: tuple[float, ...]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        REGISTRY.register(self)

    def observe_all(self, seconds: Sequence[float]) -> None:
        ordered, before = sorted(seconds), 0
        for n, bound in enumerate(self._bounds):
            if before == len(ordered):
                break
            up_to = bisect_right(ordered, bound)
            self._counts[n] += up_to - before
            before = up_to
        self._sum += sum(seconds)

    def collect(self) -> Iterator[Metric]:
        buckets = zip(map(floatToGoString, self._bounds), accumulate(self._counts), strict=True)
        yield HistogramMetricFamily(self._name, self._documentation, list(buckets), self._sum)


# -- the daemon itself

BUILD = Info(
    "correlator_build", "Versions: the correlator, Python, the event loop and the database driver.", registry=REGISTRY
)
READY = gauge("correlator_ready", "1 if /health/ready reports ready: the tables have been read.")
LOOP_LAG = histogram(
    "correlator_event_loop_lag_seconds",
    "Seconds by which the event loop woke the supervisor too late.",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
)
LOOP_STALLS = histogram(
    "correlator_loop_stall_seconds",
    "Synchronous calls that blocked the event loop for 20 ms or longer, by name. loop: a task was woken so late,"
    " whatever the cause. gc: a garbage collection. A call within another is counted in both.",
    ["call"],
    buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
LOOP_LONGEST = gauge(
    "correlator_loop_longest_call_seconds",
    "The longest call of each name since the daemon started, also below 20 ms. clock is wall, or cpu: the time of the"
    " event loop's thread alone.",
    ["call", "clock"],
)
RELOADED = gauge("correlator_config_last_reload_successful", "1 if the last reload of the configuration succeeded.")
RELOADED.set(1)  # The daemon does not start without a valid configuration.
RELOADED_AT = gauge(
    "correlator_config_last_reload_success_timestamp_seconds", "Unix time at which the configuration in use was read."
)
RELOADED_AT.set_to_current_time()
WATCHDOG_WITHHELD = counter(
    "correlator_watchdog_withheld", "Watchdog pings withheld from systemd because a task was stuck."
)
CHECKPOINT_SECONDS = histogram(
    "correlator_checkpoint_write_seconds",
    "Duration of checkpoint writes.",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
)
CHECKPOINT_FAILURES = counter("correlator_checkpoint_failures", "Writes of the checkpoint that failed.")
CHECKPOINT_AGE = gauge(
    "correlator_checkpoint_age_seconds",
    "Seconds since the last checkpoint write; before the first one, since the daemon started.",
)

# -- the database

DATABASE_UP = gauge("correlator_database_up", "1 if the database answers.")
SOURCE_LAG = gauge(
    "correlator_source_lag_seconds",
    "Age of the published state: seconds since the database last answered, or the age of the log row that a catch-up"
    " has reached. 0 while rows are read as they are committed.",
)
SOURCE_SUCCESS = gauge(
    "correlator_source_last_success_timestamp_seconds",
    "Unix time at which the database last answered in full; 0 before the first answer.",
)
SOURCE_FAILURES = counter("correlator_source_failures", "Connections to the database that failed or broke.")
LOST_TABLES = gauge(
    "correlator_missing_tables", "Needed tables and columns that cannot be read: missing, or SELECT is not granted."
)
ROWS = counter("correlator_rows", "Rows of log_events read.")
MALFORMED = counter("correlator_malformed_rows", "Rows with a value that could not be parsed.", ["reason"])
CORRECTIONS = counter(
    "correlator_reconcile_corrections",
    "Facts found in the tables without a log row within 5 s: JobLog drops rows when its queue is full. kind is the"
    " missing row: job_started, job_ended, step_started, step_ended (one for each job or step); error (the row has"
    " another error text), percent (the log has percentages of the job, but not this one).",
    ["kind"],
)
TRANSITIONS_DROPPED = counter(
    "correlator_transitions_dropped",
    "Transitions found only in the tables and published without an event, because too many waited for their log row.",
)
DOORBELL_UP = gauge("correlator_doorbell_up", "1 if the binary log of the server is being read.")
DOORBELL_WAKE_UPS = counter("correlator_doorbell_rings", "Wake-ups by the binary log because tables changed.")
LOG_RESETS = counter(
    "correlator_log_resets", "Times that the IDs of log_events restarted at a lower value and the log was read again."
)
GAPS_OPEN = gauge(
    "correlator_gaps_open", "Gaps: groups of missing IDs below the head of the log whose rows may still be committed."
)
GAP_OLDEST = gauge("correlator_gap_oldest_seconds", "Seconds since the oldest open gap was found.")
LATE_ROWS = counter(
    "correlator_late_rows",
    "Rows that were committed after their gap had been given up; they are published all the same.",
)
END_TO_END = Delays(
    "correlator_end_to_end_seconds",
    "Seconds from a log row's ts to its publication, for rows read as they are committed. Includes the writer's time to"
    " commit and the offset between the clocks; never below 0.",
    (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)

# -- the jobs

JOBS = gauge("correlator_jobs", "Jobs in memory.", ["status"])
JOBS_STALLED = gauge("correlator_jobs_stalled", "Running jobs without activity for longer than jobs.stalled_after.")
JOBS_LATE = gauge(
    "correlator_jobs_late",
    "Running jobs that have been at their present step for longer than 90 % of the earlier runs, and not than all.",
)
JOBS_OVERDUE = gauge(
    "correlator_jobs_overdue", "Running jobs that have been at their present step for longer than any earlier run."
)
JOBS_ENDED = counter(
    "correlator_jobs_ended",
    "Jobs that ended in this run of the daemon, each once.",
    ["status", "job_type", "operation"],
)
FAILURES = counter(
    "correlator_failures",
    "Jobs that failed in this run of the daemon. state: new, known; unknown while failed jobs were still being read.",
    ["state"],
)
JOB_SECONDS = histogram(
    "correlator_job_duration_seconds",
    "Duration of ended jobs, by the timestamps of the appliance.",
    ["job_type", "operation"],
    buckets=(1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 43_200, 86_400),
)

# -- the forecasts

FORECAST_HISTORY_READ = gauge(
    "correlator_forecast_history_read",
    "1 if the earlier runs have been read, from the tables or from the checkpoint. Before that, forecasts are missing.",
)
FORECAST_COVERAGE = OptionalGauge(
    "correlator_forecast_p90_coverage",
    "Share of the ends named by p90 that a job then kept, 0 to 1: the mean of the last 200 completed jobs that had a"
    " forecast. 0.9 is right; more is too late, less too early. Absent before the first such job.",
)
FORECAST_ERROR = OptionalGauge(
    "correlator_forecast_median_relative_error",
    "Distance of a job's end from its first p50, divided by its duration: the median of the last 200 completed jobs"
    " that had a forecast. Absent before the first such job.",
)
FORECAST_OPERATIONS = gauge(
    "correlator_forecast_operations",
    "Operations of which runs are known. basis is yes with 3 completed runs or more: their jobs have a forecast.",
    ["basis"],
)

# -- the connections

CLIENTS = gauge("correlator_readers", "Connected websocket and event stream clients.", ["transport"])
CLIENTS_LAGGING = gauge("correlator_readers_lagging", "Connections that read slowly and get only the newest states.")
CLIENTS_CLOSED = counter("correlator_readers_closed", "Connections closed by the correlator.", ["reason"])
for _reason in ("slow", "gone"):
    CLIENTS_CLOSED.labels(_reason)
REFUSED = counter(
    "correlator_http_refused",
    "Requests and websockets that were refused, 401, 403 and too many wrong tokens (429). no_token, wrong_token,"
    " expired, ticket: nobody is known by what they sent. guesses: too many wrong tokens came from that address. scope,"
    " instance: the token is not for that. host, origin: a name or a page that is not listed.",
    ["reason"],
)
TOKEN_EXPIRES = gauge(
    "correlator_http_token_expires_timestamp_seconds",
    "Unix time at which a token with a name and an end expires.",
    ["token"],
)
CONNECTIONS = gauge("correlator_connections", "Open connections to the listener, idle ones too.")
CONNECTIONS_ENDED = counter(
    "correlator_connections_ended",
    "Connections ended as there were too many. idle: an idle one, for a new one. refused: a request beyond the limit."
    " handshake: one whose TLS handshake had not ended, for the next one.",
    ["reason"],
)
for _reason in ("idle", "refused", "handshake"):
    CONNECTIONS_ENDED.labels(_reason)
DROPPED_LINES = counter(
    "correlator_readers_dropped_lines",
    "Log lines not sent to connections that read slowly; each connection got the number.",
)

# -- the broker

MQTT_CONFIGURED = gauge("correlator_mqtt_configured", "1 if a broker is configured.")
MQTT_CONNECTED = gauge("correlator_mqtt_connected", "1 if the broker is connected.")
MQTT_PUBLISHED = counter("correlator_mqtt_published", "Messages that the broker acknowledged.")
MQTT_EVENTS_DROPPED = counter(
    "correlator_mqtt_events_dropped", "Events dropped while the broker was unreachable or too slow."
)
MQTT_PENDING = gauge("correlator_mqtt_pending", "Messages that the broker has not acknowledged yet.")
MQTT_QUEUE_AGE = gauge("correlator_mqtt_queue_age_seconds", "Age of the oldest pending message.")
MQTT_REFUSED = counter("correlator_mqtt_refused", "Messages that the broker refused.")

# -- traces

OTLP_TRACES = counter("correlator_otlp_traces", "Jobs exported as traces.")
OTLP_SPANS = counter(
    "correlator_otlp_spans",
    "Spans sent, by result: accepted; rejected, one by one, by a receiver that accepted the request; refused, because"
    " the receiver refused the request.",
    ["result"],
)
for _result in ("accepted", "rejected", "refused"):
    OTLP_SPANS.labels(_result)
OTLP_FAILURES = counter("correlator_otlp_failures", "Requests that failed and are tried again.")
OTLP_DROPPED = counter("correlator_otlp_dropped", "Ended jobs that left memory before they were exported as traces.")
OTLP_PENDING = gauge("correlator_otlp_pending", "Ended jobs that are not exported as traces yet.")
OTLP_QUEUE_AGE = gauge(
    "correlator_otlp_queue_age_seconds",
    "Seconds since the end of the oldest job that is not exported yet; otlp.delay is part of it.",
)

# -- the webhooks

WEBHOOK_REQUESTS = counter(
    "correlator_webhook_requests",
    "Requests to the receivers of webhooks. result: delivered; refused (the receiver does not accept this event); away"
    " (no response, or the receiver accepts no event at the moment); gone (it wants no event any more).",
    ["webhook", "result"],
)
WEBHOOK_PENDING = gauge("correlator_webhook_pending", "Events that the receiver has not acknowledged yet.", ["webhook"])
WEBHOOK_QUEUE_AGE = gauge("correlator_webhook_queue_age_seconds", "Age of the oldest pending event.", ["webhook"])
WEBHOOK_EVENTS_DROPPED = counter(
    "correlator_webhook_events_dropped",
    "Events that were not delivered. reason: expired (tried for 24 h), full (too many were pending), gone (the receiver"
    " wants none), too_large, removed (the webhook is not configured any more).",
    ["webhook", "reason"],
)

# -- labels

MAX_LABEL = 64
"""Characters of a label value from the database."""


def label(text: str | None) -> str:
    """Return a text from the database as a label value: truncated, and with ? for characters that do not print."""
    if not text:
        return "unknown"  # Prometheus treats an empty label as absent.
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_LABEL])


class Bounded:
    """Bounds the number of series: the first `LIMIT` combinations of label values are kept, all others are `other`."""

    LIMIT: Final = 50
    OTHER: Final = "other"

    def __init__(self) -> None:
        self._known: dict[tuple[str | None, ...], tuple[str, ...]] = {}

    def __call__(self, *texts: str | None) -> tuple[str, ...]:
        values = self._known.get(texts)
        if values is None:
            if len(self._known) >= self.LIMIT:
                return (self.OTHER,) * len(texts)
            values = self._known[texts] = tuple(map(label, texts))
        return values
