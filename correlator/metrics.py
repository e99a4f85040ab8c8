"""What is counted and measured. No job id is ever a label, and texts from the database are bounded before they are.

Who measures sets it; what can only be asked for is a function, called when somebody scrapes. A series that an alert
counts from stands at 0 before it counts, where its labels are known: Prometheus sees no increase in one that begins
at 1.
"""

from __future__ import annotations

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

# When each series began: as many series again, which nothing asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()

ProcessCollector(registry=REGISTRY)

# -- the daemon itself

BUILD = Info("correlator_build", "What runs: version, python, loop, driver.", registry=REGISTRY)
READY = Gauge("correlator_ready", "Whether /health/ready says so: the past has been read.", registry=REGISTRY)
LOOP_LAG = Histogram(
    "correlator_event_loop_lag_seconds",
    "How much later than asked for the event loop woke its own watch.",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    registry=REGISTRY,
)
RELOADED = Gauge(
    "correlator_config_last_reload_successful",
    "Whether the configuration file could be taken over when it was read last.",
    registry=REGISTRY,
)
RELOADED.set(1)  # without the first reading there would be no daemon
RELOADED_AT = Gauge(
    "correlator_config_last_reload_success_timestamp_seconds",
    "When the configuration in use was read.",
    registry=REGISTRY,
)
RELOADED_AT.set_to_current_time()
WATCHDOG_WITHHELD = Counter(
    "correlator_watchdog_withheld",
    "Signs of life that systemd was not given, because a task made no progress.",
    registry=REGISTRY,
)
CHECKPOINT_SECONDS = Histogram(
    "correlator_checkpoint_write_seconds",
    "How long a write of the checkpoint took.",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    registry=REGISTRY,
)
CHECKPOINT_FAILURES = Counter(
    "correlator_checkpoint_failures", "Writes of the checkpoint that failed.", registry=REGISTRY
)
CHECKPOINT_AGE = Gauge(
    "correlator_checkpoint_age_seconds",
    "Since the checkpoint was written last; until the first time, since the daemon began.",
    registry=REGISTRY,
)

# -- the database

DATABASE_UP = Gauge("correlator_database_up", "Whether the database answers.", registry=REGISTRY)
SOURCE_LAG = Gauge(
    "correlator_source_lag_seconds",
    "How old what is shown is: since the database answered last, or how far back in the log a catch-up is."
    " 0 while all is read as it comes.",
    registry=REGISTRY,
)
SOURCE_SUCCESS = Gauge(
    "correlator_source_last_success_timestamp_seconds",
    "When the database last gave a whole answer; 0 before the first.",
    registry=REGISTRY,
)
SOURCE_FAILURES = Counter(
    "correlator_source_failures", "Connections to the database that failed or broke.", registry=REGISTRY
)
ROWS = Counter("correlator_rows", "Rows of log_events read.", registry=REGISTRY)
MALFORMED = Counter(
    "correlator_malformed_rows", "Rows that could not be understood in full.", ["reason"], registry=REGISTRY
)
CORRECTIONS = Counter(
    "correlator_reconcile_corrections",
    "What the tables said and the log did not within 5 s: JobLog drops rows when its queue is full. kind is the row"
    " that never came: job_started, job_ended, step_started, step_ended (one for each job or step); error (the row"
    " came with another error text), percent (the log tells percentages, but not this one).",
    ["kind"],
    registry=REGISTRY,
)
DOORBELL_UP = Gauge("correlator_doorbell_up", "Whether the server's binary log is listened to.", registry=REGISTRY)
DOORBELL_RINGS = Counter(
    "correlator_doorbell_rings", "Times that the binary log told of changed tables.", registry=REGISTRY
)
LOG_RESETS = Counter(
    "correlator_log_resets",
    "Times that the ids of log_events started again lower, and the log was read again.",
    registry=REGISTRY,
)
GAPS_OPEN = Gauge(
    "correlator_gaps_open",
    "Groups of ids missing below the head of the log that are still waited for.",
    registry=REGISTRY,
)
GAP_OLDEST = Gauge(
    "correlator_gap_oldest_seconds", "For how long the oldest of them has been waited for.", registry=REGISTRY
)
LATE_ROWS = Counter(
    "correlator_late_rows",
    "Rows that were committed after they had been given up; they are shown all the same.",
    registry=REGISTRY,
)
END_TO_END = Histogram(
    "correlator_end_to_end_seconds",
    "From a log row's ts to its publication, of rows read as they come. It holds how long the writer took to commit,"
    " and how far the clocks are apart; never less than 0.",
    buckets=(0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0),
    registry=REGISTRY,
)

# -- the jobs

JOBS = Gauge("correlator_jobs", "Jobs in memory.", ["status"], registry=REGISTRY)
JOBS_STALLED = Gauge("correlator_jobs_stalled", "Jobs that run and have long been silent.", registry=REGISTRY)
JOBS_ENDED = Counter(
    "correlator_jobs_ended",
    "Jobs that ended in this run of the daemon, each once.",
    ["status", "job_type", "operation"],
    registry=REGISTRY,
)
JOB_SECONDS = Histogram(
    "correlator_job_duration_seconds",
    "How long they took, by the appliance's own times.",
    ["job_type", "operation"],
    buckets=(1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 43_200, 86_400),
    registry=REGISTRY,
)

# -- the readers

READERS = Gauge("correlator_readers", "Readers connected.", ["transport"], registry=REGISTRY)
READERS_LAGGING = Gauge(
    "correlator_readers_lagging", "Readers that get the newest states only, as they read slowly.", registry=REGISTRY
)
READERS_CLOSED = Counter("correlator_readers_closed", "Readers closed by us.", ["reason"], registry=REGISTRY)
for _reason in ("slow", "gone"):
    READERS_CLOSED.labels(_reason)
DROPPED_LINES = Counter(
    "correlator_readers_dropped_lines",
    "Log lines that readers did not get, as they read slowly; each was told how many.",
    registry=REGISTRY,
)

# -- the broker

MQTT_CONFIGURED = Gauge("correlator_mqtt_configured", "Whether there is a broker to publish to.", registry=REGISTRY)
MQTT_CONNECTED = Gauge("correlator_mqtt_connected", "Whether the broker is connected.", registry=REGISTRY)
MQTT_PUBLISHED = Counter("correlator_mqtt_published", "Messages the broker acknowledged.", registry=REGISTRY)
MQTT_EVENTS_DROPPED = Counter(
    "correlator_mqtt_events_dropped", "Events given up while the broker was away.", registry=REGISTRY
)
MQTT_PENDING = Gauge("correlator_mqtt_pending", "Messages the broker has not acknowledged.", registry=REGISTRY)
MQTT_QUEUE_AGE = Gauge(
    "correlator_mqtt_queue_age_seconds", "For how long the oldest of them has been owed.", registry=REGISTRY
)
MQTT_REFUSED = Counter("correlator_mqtt_refused", "Messages the broker refused.", registry=REGISTRY)

# -- labels

MAX_LABEL = 64
"""Characters of a label's value that come from the database."""


def label(text: str | None) -> str:
    """A text from the database as the value of a label: short, and nothing but what prints."""
    if not text:
        return "unknown"  # an empty label is none, to Prometheus
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_LABEL])


class Bounded:
    """Label values that come together: the first `limit` of them as they are, all others as ``other``."""

    OTHER: Final = "other"

    def __init__(self, limit: int = 50) -> None:
        self._limit = limit
        self._known: dict[tuple[str | None, ...], tuple[str, ...]] = {}

    def __call__(self, *texts: str | None) -> tuple[str, ...]:
        values = self._known.get(texts)
        if values is None:
            if len(self._known) >= self._limit:
                return (self.OTHER,) * len(texts)
            values = self._known[texts] = tuple(map(label, texts))
        return values
