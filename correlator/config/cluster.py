"""The `[cluster]` table: its keys, and the syntax of its values: addresses of NATS servers, an instance, replicas."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeAlias

import msgspec

from correlator.config.tls import Tls
from correlator.config.values import (
    NO_QUERY,
    Section,
    bracketed,
    read_secret,
    shown_path,
    split_url,
    text_like,
    text_of,
)
from correlator.config.values import key as _key
from correlator.errors import ConfigError

Replicas: TypeAlias = Literal[1, 3, 5]


_URL = (
    "nats://host:4222 or tls://host:4222, several separated by commas and all with the same scheme; the user belongs"
    " in cluster.credentials_file"
)
_JWT = "BEGIN NATS USER JWT"
_SEED = re.compile(r"SU[A-Z2-7]{56}")
MAX_SERVERS = 16


class NatsUrl(msgspec.Struct, frozen=True):
    """The servers of one NATS cluster. `servers`: a URL each; `tls`: the scheme of all is tls."""

    servers: tuple[str, ...]
    tls: bool

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Parse the addresses of the servers."""
        servers = [_server(part.strip()) for part in text_of(raw, _URL).split(",")]
        schemes = {server.partition(":")[0] for server in servers}
        if len(schemes) != 1 or len(servers) > MAX_SERVERS:
            raise ValueError(_URL)
        return cls(tuple(dict.fromkeys(servers)), schemes == {"tls"})

    def __str__(self) -> str:
        return ",".join(self.servers)


def _server(text: str) -> str:
    parts = split_url(text, ("nats", "tls"), _URL, forbidden=NO_QUERY)
    if parts.path not in ("", "/"):
        raise ValueError(_URL)
    return f"{parts.scheme}://{bracketed(parts.hostname or '')}:{parts.port or 4222}"


def default_instance(host: str) -> str:
    """Return the name of the instance on `host`: the first label of the host name, with - for other characters."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", host.partition(".")[0])[:64] or "correlator"


def is_seed(file: Path) -> bool:
    """True if the credentials file holds the seed of an nkey, False if it holds a JWT and its seed (a creds file).

    Raises: `ConfigError` if it holds neither.
    """
    text = read_secret(file, "cluster.credentials_file")
    if _JWT in text:
        return False
    if _SEED.fullmatch(text.strip()):
        return True
    expected = "a creds file of a NATS user, or the seed of an nkey (SU…) and nothing else"
    raise ConfigError([f"cluster.credentials_file: expected {expected} in {shown_path(file)}"])


@dataclass(frozen=True, kw_only=True)
class Cluster(Section):
    url: NatsUrl | None = _key(
        None,
        'NATS servers with JetStream: "nats://host:4222" or "tls://host:4222", several separated by commas;'
        " empty: no cluster.",
    )
    instance: str = _key(
        "",
        "The name of the appliance in the cluster, the same for its active collector and its standby; A-Z a-z 0-9"
        " - _; empty: the first label of the host name.",
        text_like(r"[A-Za-z0-9_-]{0,64}", "1 to 64 of the characters A-Z a-z 0-9 - _"),
    )
    credentials_file: Path | None = _key(
        None,
        "A creds file of the NATS user, or a file with the seed of its nkey. Also as the credential nats-creds.",
        credential="nats-creds",
    )
    tls: Tls | None = _key(
        None, "TLS for tls:// servers. Without this table their certificates are checked with the system's CAs."
    )
    replicas: Replicas = _key(1, "How many NATS servers keep each stream: 1, 3 or 5, at most as many as there are.")
