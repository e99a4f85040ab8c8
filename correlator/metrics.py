"""What is counted and measured. No job id is ever a label: the number of series must not grow with jobs."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

ROWS = Counter("correlator_rows", "Rows of log_events read.", registry=REGISTRY)
MALFORMED = Counter(
    "correlator_malformed_rows", "Rows that could not be understood in full.", ["reason"], registry=REGISTRY
)
DATABASE_UP = Gauge("correlator_database_up", "Whether the database answers.", registry=REGISTRY)
CORRECTIONS = Counter(
    "correlator_reconcile_corrections",
    "What the tables said and the log did not within 5 s: JobLog drops rows when its queue is full. kind is the row"
    " that never came: job_started, job_ended, step_started, step_ended (one for each job or step); error (the row"
    " came with another error text), percent (the log tells percentages, but not this one).",
    ["kind"],
    registry=REGISTRY,
)
MQTT_CONNECTED = Gauge("correlator_mqtt_connected", "Whether the broker is connected.", registry=REGISTRY)
READERS = Gauge("correlator_readers", "Readers connected.", ["transport"], registry=REGISTRY)
READERS_CLOSED = Counter("correlator_readers_closed", "Readers closed by us.", ["reason"], registry=REGISTRY)
JOBS = Gauge("correlator_jobs", "Jobs in memory.", ["status"], registry=REGISTRY)
MQTT_PUBLISHED = Counter("correlator_mqtt_published", "Messages the broker acknowledged.", registry=REGISTRY)
MQTT_EVENTS_DROPPED = Counter(
    "correlator_mqtt_events_dropped", "Events given up while the broker was away.", registry=REGISTRY
)
MQTT_PENDING = Gauge("correlator_mqtt_pending", "Messages the broker has not acknowledged.", registry=REGISTRY)
MQTT_REFUSED = Counter("correlator_mqtt_refused", "Messages the broker refused.", registry=REGISTRY)
CHECKPOINT_SECONDS = Histogram(
    "correlator_checkpoint_write_seconds",
    "How long a write of the checkpoint took.",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    registry=REGISTRY,
)
CHECKPOINT_FAILURES = Counter(
    "correlator_checkpoint_failures", "Writes of the checkpoint that failed.", registry=REGISTRY
)
