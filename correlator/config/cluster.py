"""The `[cluster]` table: its keys, and the syntax of its values: addresses of NATS servers, an instance, replicas."""

import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec

from correlator.config import values
from correlator.config.tls import Tls
from correlator.config.values import Section, read_secret, shown_path
from correlator.config.values import described as _key
from correlator.errors import ConfigError

Replicas: TypeAlias = Literal[1, 3, 5]


_URL = (
    "nats://host:4222 or tls://host:4222, several separated by commas and all with the same scheme; the user belongs"
    " in cluster.credentials_file"
)
_INSTANCE = "1 to 64 of the characters A-Z a-z 0-9 - _"
_JWT = "BEGIN NATS USER JWT"
_SEED = re.compile(r"SU[A-Z2-7]{56}")
MAX_SERVERS = 16


class NatsUrl(msgspec.Struct, frozen=True):
    """The servers of one NATS cluster. `servers`: a URL each; `tls`: the scheme of all is tls."""

    servers: tuple[str, ...]
    tls: bool

    def __str__(self) -> str:
        return ",".join(self.servers)


def nats_url(raw: object) -> NatsUrl | None:
    """Parse the addresses of the servers. None if empty."""
    if not isinstance(raw, str):
        raise ValueError(_URL)
    if not raw.strip():
        return None
    servers = [_server(part.strip()) for part in raw.split(",")]
    schemes = {server.partition(":")[0] for server in servers}
    if len(schemes) != 1 or len(servers) > MAX_SERVERS:
        raise ValueError(_URL)
    return NatsUrl(tuple(dict.fromkeys(servers)), schemes == {"tls"})


def _server(text: str) -> str:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # The port is not a number, or brackets do not match.
        raise ValueError(_URL) from None
    if parts.scheme not in ("nats", "tls") or not parts.hostname or port == 0 or "@" in parts.netloc:
        raise ValueError(_URL)
    if parts.path not in ("", "/") or re.search(r"[^!-~]|[?#\\]", text):
        raise ValueError(_URL)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port or 4222}"


def instance_name(raw: object) -> str:
    """Parse the name of an instance. Empty: the default."""
    if not isinstance(raw, str) or not re.fullmatch(r"[A-Za-z0-9_-]{0,64}", raw):
        raise ValueError(_INSTANCE)
    return raw


def default_instance(host: str) -> str:
    """Return the name of the instance on `host`: the first label of the host name, with - for other characters."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", host.partition(".")[0])[:64] or "correlator"


def stream_replicas(raw: object) -> Replicas:
    """Parse the number of servers that keep each stream."""
    given = str(raw) if isinstance(raw, int | str) and not isinstance(raw, bool) else ""
    for number in (1, 3, 5):
        if given == str(number):
            return number
    raise ValueError("1, 3 or 5")


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


class Cluster(Section, frozen=True, kw_only=True):
    url: Annotated[
        NatsUrl | None,
        _key(
            'NATS servers with JetStream: "nats://host:4222" or "tls://host:4222", several separated by commas;'
            " empty: no cluster.",
            nats_url,
        ),
    ] = None
    instance: Annotated[
        str,
        _key(
            "The name of the appliance in the cluster, the same for its active collector and its standby; A-Z a-z 0-9"
            " - _; empty: the first label of the host name.",
            instance_name,
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
        _key("How many NATS servers keep each stream: 1, 3 or 5, at most as many as there are.", stream_replicas),
    ] = 1
