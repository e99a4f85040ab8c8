"""The settings of `[cluster]`."""

from pathlib import Path
from typing import Annotated

from correlator.config import cluster_values, values
from correlator.config.cluster_values import NatsUrl, Replicas
from correlator.config.section import Section
from correlator.config.section import described as _key
from correlator.config.tls import Tls


class Cluster(Section, frozen=True, kw_only=True):
    url: Annotated[
        NatsUrl | None,
        _key(
            'NATS servers with JetStream: "nats://host:4222" or "tls://host:4222", several separated by commas;'
            " empty: no cluster.",
            cluster_values.url,
        ),
    ] = None
    instance: Annotated[
        str,
        _key(
            "The name of the appliance in the cluster, the same for its active collector and its standby; A-Z a-z 0-9"
            " - _; empty: the first label of the host name.",
            cluster_values.instance,
        ),
    ] = ""
    credentials_file: Annotated[
        Path | None,
        _key(
            "A creds file of the NATS user, or a file with the seed of its nkey. Also as the credential nats-creds.",
            values.optional_path,
        ),
    ] = None
    tls: Annotated[
        Tls | None,
        _key("TLS for tls:// servers. Without this table their certificates are checked with the system's CAs."),
    ] = None
    replicas: Annotated[
        Replicas,
        _key(
            "How many NATS servers keep each stream: 1, 3 or 5, at most as many as there are.", cluster_values.replicas
        ),
    ] = 1
