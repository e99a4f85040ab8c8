"""The metrics of a cluster: of collectors, and of gateways. A process without [cluster] does not import this.

The label of an appliance is `appliance`, because Prometheus has its own `instance`.
"""

from __future__ import annotations

from correlator.ops.metrics import OptionalGauge, counter, gauge

CONNECTED = gauge("correlator_cluster_connected", "1 if a NATS server is connected.")

UNREADABLE = counter(
    "correlator_cluster_unreadable", "Messages of the cluster that were passed over, as they cannot be read."
)

MESSAGES_DROPPED = counter(
    "correlator_cluster_messages_dropped",
    "Messages of the cluster that were dropped, because they came faster than this process handles them.",
)

# -- a collector

LEASE = gauge(
    "correlator_cluster_lease",
    "1 if this process holds the lease of its appliance, 0 if it is a standby.",
    ["appliance"],
)
TAKEOVERS = counter("correlator_cluster_takeovers", "How often this process took the lease.")
FENCED = counter("correlator_cluster_fenced", "Writes refused because another collector has the lease.")
PENDING = gauge("correlator_cluster_pending", "Jobs and events that the stream has not acknowledged yet.")
QUEUE_AGE = gauge("correlator_cluster_queue_age_seconds", "Age of the oldest of them.")
DOCUMENTS = counter("correlator_cluster_documents", "Documents and removals that the stream acknowledged.")
BATCHES = counter("correlator_cluster_batches", "Batches of documents that the stream acknowledged.")
EVENTS = counter("correlator_cluster_events", "Events that the stream acknowledged.")
ACKNOWLEDGED = gauge(
    "correlator_cluster_acknowledged_timestamp_seconds",
    "When the stream last acknowledged documents or events; 0 before the first time.",
)
REFUSED = counter(
    "correlator_cluster_refused",
    "Writes and other requests that NATS refused for another reason than the lease, e.g. a full disk.",
)
LINES_DROPPED = counter("correlator_cluster_lines_dropped", "Log lines dropped while the cluster was unreachable.")
EVENTS_DROPPED = counter("correlator_cluster_events_dropped", "Events dropped while the cluster was unreachable.")
REPAIRED = counter(
    "correlator_cluster_repaired",
    "Jobs of the stream that differed from the index in a periodic check and were written again.",
)
TAKEOVER_WRITES = counter(
    "correlator_cluster_takeover_writes",
    "Jobs of the stream that differed from the index when this process took the lease, or in a new stream.",
)
REQUESTS_REJECTED = counter(
    "correlator_cluster_requests_rejected",
    "Requests of gateways rejected because as many as allowed were being answered.",
)

# -- a gateway

BEHIND = OptionalGauge(
    "correlator_gateway_behind_messages", "Messages of the stream that this gateway has not read; none: not known."
)
STALE = OptionalGauge(
    "correlator_gateway_stale_seconds", "Seconds since this gateway had read all of the stream; none: not yet."
)
ONLINE = gauge("correlator_appliance_online", "1 if a collector of the appliance is alive.", ["appliance"])
SEEN = gauge(
    "correlator_appliance_last_seen_timestamp_seconds",
    "When a collector of the appliance was last seen alive.",
    ["appliance"],
)
CROWDED = counter(
    "correlator_appliance_crowded",
    "Jobs that left the memory of this gateway because those of their appliance took more than its share.",
    ["appliance"],
)
