"""The schema of the configuration: every section and key, with its type, default, bounds and description.

A key is declared only here: loading, the names of environment variables, suggestions for misspelled names and the
generated reference are derived from these types. Values are frozen, durations are seconds, and a repr hides secrets.
Defaults that depend on the machine (state.directory, mqtt.instance, cluster.instance) are filled in by
`loading.load`. Values whose syntax several tables share are in `values`; `[[webhooks]]` are in `webhooks`.
"""

import json
import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Self, TypeAlias, get_args, get_origin

import msgspec

from correlator.config import values
from correlator.config.failures import Failures
from correlator.config.tokens import AcceptedToken, Token, accepted, job_token_keys
from correlator.config.values import (
    NO_QUERY,
    BrokerUrl,
    DatabaseUrl,
    Listen,
    MysqlUrl,
    Secret,
    Section,
    Size,
    bracketed,
    labels,
    read_secret,
    shown_path,
    split_url,
    text_like,
    text_of,
    texts_like,
    toml,
    without_path,
)
from correlator.config.values import key as _key
from correlator.config.webhooks import Webhook
from correlator.errors import ConfigError
from correlator.tls import default_context


@dataclass(frozen=True, kw_only=True)
class Tls(Section):
    ca: Path | None = _key(None, "CA certificates to trust (PEM); empty: the system's.")
    cert: Path | None = _key(None, "Client certificate (PEM), for a peer that asks for one.")
    key: Path | None = _key(None, "Private key of `cert` (PEM).")
    verify: bool = _key(True, "Check the peer's certificate and its host name.")


def client_context(settings: Tls | None) -> ssl.SSLContext:
    """Return the context for `settings`. None: trust the system's CAs, and verify certificate and host name.

    Raises: OSError or ssl.SSLError if a file cannot be read or used.
    """
    context = default_context(ca=settings.ca if settings is not None else None)
    if settings is not None and not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings is not None and settings.cert is not None:
        context.load_cert_chain(settings.cert, settings.key)
    return context


# -- [cluster]: addresses of NATS servers, an instance, replicas


Replicas: TypeAlias = Literal[1, 3, 5]


_NATS_URL = (
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
        servers = [_server(part.strip()) for part in text_of(raw, _NATS_URL).split(",")]
        schemes = {server.partition(":")[0] for server in servers}
        if len(schemes) != 1 or len(servers) > MAX_SERVERS:
            raise ValueError(_NATS_URL)
        return cls(tuple(dict.fromkeys(servers)), schemes == {"tls"})

    def __str__(self) -> str:
        return ",".join(self.servers)


def _server(text: str) -> str:
    parts = split_url(text, ("nats", "tls"), _NATS_URL, forbidden=NO_QUERY)
    if parts.path not in ("", "/"):
        raise ValueError(_NATS_URL)
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
        "The name of the appliance in the cluster, the same for its collector and its standby; A-Z a-z 0-9 - _;"
        " empty: the first label of the host name.",
        text_like(r"[A-Za-z0-9_-]{0,64}", "1 to 64 of the characters A-Z a-z 0-9 - _"),
    )
    instances: tuple[str, ...] = _key(
        (),
        "At a gateway: the appliances that it reads and serves, so that several gateways divide a fleet; empty: all.",
        texts_like(r"[A-Za-z0-9_-]{1,64}", 'names of appliances, e.g. ["dc1"]'),
    )
    credentials_file: Path | None = _key(
        None,
        "A creds file of the NATS user, or the seed of its nkey. Also as the credential nats-creds.",
        credential="nats-creds",
    )
    tls: Tls | None = _key(
        None, "TLS for tls:// servers. Without this table their certificates are checked with the system's CAs."
    )
    domain: str = _key(
        "",
        "The domain of JetStream: its API is at $JS.DOMAIN.API. Empty: that of the user's own account.",
        text_like(r"[A-Za-z0-9_-]{0,64}", "1 to 64 of the characters A-Z a-z 0-9 - _"),
    )
    replicas: Replicas = _key(1, "How many NATS servers keep each stream.")


# -- [otlp]: the receiver's URL and the headers of requests


PATH = "/v1/traces"


_TRACES_URL = (
    f'"http://host:4318" or "https://host/path", to which {PATH} is added; headers instead of a user or ?query'
)
_HEADER = re.compile(r"(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}):[ \t]*(?P<value>[!-~](?:[ -~\t]{0,4094}[!-~])?)")
SECRET_HEADER = re.compile(r"[\w-]*(?:auth|cookie|key|secret|token)[\w-]*\s*:", re.IGNORECASE)
_OURS = frozenset({"connection", "content-encoding", "content-length", "content-type", "host", "transfer-encoding"})
"""Headers that follow from the request itself."""


class Header(str):
    """A header. It prints without its value, which may be a secret whatever the header is called."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{self.partition(':')[0]}: ***"


class TracesUrl(msgspec.Struct, frozen=True):
    """The URL of a receiver's traces. It prints without a path of its own, which may be a secret."""

    whole: str
    shown: str

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Parse the URL of a receiver."""
        parts = split_url(raw, ("http", "https"), _TRACES_URL, forbidden=NO_QUERY)
        url = parts.geturl()
        whole = url if parts.path.endswith(PATH) else url.rstrip("/") + PATH
        return cls(whole, whole if parts.path in ("", "/", PATH) else without_path(parts))

    def reveal(self) -> str:
        return self.whole

    def __str__(self) -> str:
        return self.shown

    __repr__ = __str__


def request_headers(raw: object) -> tuple[str, ...]:
    """Parse headers of the form `Name: value`."""
    expected = 'a list of headers, e.g. ["X-Scope-OrgID: tenant-1"]; one that holds a secret belongs in headers_file'
    if not isinstance(raw, list) or not all(isinstance(line, str) for line in raw):
        raise ValueError(expected)
    try:
        given = _parsed(raw)
    except ValueError:
        raise ValueError(expected) from None
    if any(name.lower() == "authorization" for name in given):
        raise ValueError(expected)
    return tuple(map(Header, raw))


def read_headers(given: Iterable[str], file: Path | None) -> dict[str, str]:
    """Return the headers of a request by name: those `given`, and those in `file`, one a line.

    Raises: `ConfigError` if the file cannot be used.
    """
    lines = read_secret(file, "otlp.headers_file").splitlines() if file is not None else []
    lines = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    try:
        found = _parsed([*given, *lines])
    except ValueError:
        found = {}
    if file is not None and (not lines or not found):
        text = f"otlp.headers_file: expected a header a line in {shown_path(file)}, e.g. Authorization: Bearer TOKEN"
        raise ConfigError([text])
    return found


def _parsed(lines: Iterable[str]) -> dict[str, str]:
    """Raises: ValueError if a line is no header, or one that the request sets itself."""
    found: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None or match["name"].lower() in _OURS:
            raise ValueError(line)
        found[match["name"]] = match["value"]
    return found


@dataclass(frozen=True, kw_only=True)
class Otlp(Section):
    url: TracesUrl | None = _key(
        None,
        f'An OpenTelemetry receiver of OTLP/HTTP, e.g. "http://127.0.0.1:4318"; empty: off. Requests go to {PATH}'
        " below it.",
        live=True,
    )
    encoding: Literal["json", "protobuf"] = _key(
        "json", "What the receiver takes. protobuf needs the extra `otlp`, which the Debian package has.", live=True
    )
    headers: tuple[str, ...] = _key(
        (),
        'Headers of each request, e.g. "X-Scope-OrgID: tenant-1". Secrets: headers_file.',
        request_headers,
        live=True,
    )
    headers_file: Path | None = _key(
        None,
        'File of more headers, one a line, e.g. "Authorization: Bearer TOKEN"; # comments. Also as the credential'
        " otlp-headers.",
        live=True,
        credential="otlp-headers",
    )
    tls: Tls | None = _key(
        None,
        "TLS for an https:// receiver. Without this table its certificate is checked with the system's CAs.",
        live=True,
    )
    timeout: float = _key(10.0, "Time for each request.", live=True, gt=0)
    delay: float = _key(
        10.0,
        "From the end of a job to its export: what arrives meanwhile is part of the trace, later corrections are not.",
        live=True,
        ge=0,
    )


# -- the other tables


@dataclass(frozen=True, kw_only=True)
class Database(Section):
    url: DatabaseUrl = _key(
        MysqlUrl(user="correlator", host="127.0.0.1", port=3306, database="migratekit_oma"),
        'Where the tables are: "mysql://user[:password]@host:port/database" or "sqlite:///path/to/file.db".',
        values.database_url,
    )
    unix_socket: Path | None = _key(None, "Socket of a server on this host, used in place of the URL's host and port.")
    password: Secret = _key(Secret(), "Better in password_file, or as the credential db-password.", live=True)
    password_file: Path | None = _key(None, "A file with the password alone.", live=True, credential="db-password")
    tls: Tls | None = _key(None, "TLS. Without this table the connection is not encrypted.")
    timezone: str = _key(
        "auto",
        "Zone of the DATETIME columns, an IANA name. auto: this host's if the server runs here with the same offset,"
        " else the server's current offset.",
        values.zone,
    )
    connect_timeout: float = _key(5.0, "Time to reach the server and log in.", gt=0)
    query_timeout: float = _key(10.0, "Time for each query.", gt=0)
    driver: Literal["auto", "aiomysql", "asyncmy"] = _key(
        "auto", "The client library. auto: asyncmy if it is installed, else aiomysql."
    )
    doorbell: bool = _key(
        False,
        "Also read MariaDB's binary log, so that committed rows are read within milliseconds. Needs log_bin and"
        " REPLICATION SLAVE.",
    )
    poll_interval: float = _key(
        0.02,
        "Between two queries of log_events while jobs run, or clients are connected and something happened within"
        " 10 s.",
        ge=0.001,
    )
    idle_poll_interval: float = _key(0.25, "The same at all other times.", ge=0.001)
    reconcile_interval: float = _key(
        1.0, "Between two queries of job_tracking and job_steps for the running jobs.", ge=0.05
    )


@dataclass(frozen=True, kw_only=True)
class Jobs(Section):
    retention: float = _key(24 * 3600.0, "How long ended jobs stay in memory.", ge=0)
    max_jobs: int = _key(
        20000,
        "Maximum number of jobs in memory. Those that ended first are removed first, running ones never.",
        ge=1,
    )
    stalled_after: float = _key(600.0, "A running job that has been silent for longer is stalled.", live=True, gt=0)
    external_id_keys: tuple[str, ...] = _key(
        ("external_job_id", "failover_job_id", "gui_job_id"),
        "Keys of attrs and of job_tracking.metadata that hold external IDs.",
    )
    history: float = _key(24 * 3600.0, "How far back a first start reads.", ge=0)
    legacy: bool = _key(True, "Follow failover_jobs too.")
    max_metadata: Size = _key(
        Size(16_000),
        "Maximum bytes of a job's published metadata. Larger metadata loses its largest members, which `_cut` names.",
    )
    max_error: Size = _key(
        Size(8_000),
        "Maximum bytes of a published error. Those of a job's steps share 8 times as many.",
    )


@dataclass(frozen=True, kw_only=True)
class Labels(Section):
    operations: tuple[str, ...] = _key(
        (), 'Titles of operations, e.g. "unified-live-failover = Live failover".', labels
    )
    steps: tuple[str, ...] = _key((), 'Titles of steps, e.g. "final-sync = Final synchronisation".', labels)


@dataclass(frozen=True, kw_only=True)
class Http(Section):
    listen: Listen = _key(Listen(host="127.0.0.1", port=8686), '"host:port" or "[::1]:port". Port 0: any free port.')
    public_url: str | None = _key(
        None,
        'Where people open the page, e.g. "https://correlator.example", in a fleet "https://gateway.example/i/dc1":'
        " {{url}} of webhooks and --web of commands lead there, its name is accepted in the Host header, and its origin"
        " may connect. Empty: host and port of `listen`.",
        values.page_url,
        live=True,
    )
    insecure: bool = _key(
        False, "Allow a `listen` that is not loopback without a token: everybody on the network can read."
    )
    allowed_origins: tuple[str, ...] = _key(
        (),
        'Origins of pages that may connect, e.g. "https://gui.example". Its own origin always may: the scheme of the'
        " listener, or of `public_url`, and the Host.",
        values.origins,
        live=True,
    )
    allowed_hosts: tuple[str, ...] = _key(
        (),
        "Names accepted in the Host header, in addition to the listen address and localhost.",
        values.hosts,
        live=True,
    )
    trusted_proxies: tuple[str, ...] = _key(
        (),
        "Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed: limits count their"
        " clients, and the own origin has the scheme of their clients.",
        values.networks,
        live=True,
    )
    tokens_file: Path | None = _key(
        None,
        "File of the tokens without a name, one a line, # comments: each may be used for everything. Also as the"
        " credential api-token.",
        live=True,
        credential="api-token",
    )
    tokens: tuple[Token, ...] = _key(
        (),
        "Tokens with names, one table each, at most 100; only in the file, not in the environment.",
        live=True,
    )
    job_token_key_file: Path | None = _key(
        None,
        "File of the key that signs tokens for one job, of at least 32 characters; while it is rotated, of the new and"
        " the old one, one a line; # comments. Also as the credential job-token-key.",
        live=True,
        credential="job-token-key",
    )
    job_token_max: float = _key(
        24 * 3600.0, "The longest time for which a token for one job is valid.", live=True, gt=0
    )
    tls_cert: Path | None = _key(None, "Certificate chain (PEM): https on this listener.", live=True)
    tls_key: Path | None = _key(
        None, "Its private key (PEM), as a file that the service can read; better as the credential tls-key.", live=True
    )
    max_readers: int = _key(10000, "Maximum number of websockets and event streams at once.", live=True, ge=1)
    max_readers_per_address: int = _key(10000, "The same for one address.", live=True, ge=1)
    max_subscriptions: int = _key(100, "Maximum number of subscriptions of one connection.", ge=1)
    unknown_id_wait: float = _key(
        3.0,
        "How long GET /api/v1/failover/{id}/status waits for a job with an unknown ID before it answers 404.",
        ge=0,
    )

    @property
    def needs_token(self) -> bool:
        """True if a request needs a token."""
        return bool(self.tokens_file or self.tokens or self.job_token_key_file)

    def read_tokens(self) -> list[AcceptedToken]:
        """Return the tokens that clients may use. Raises: `ConfigError` if a file cannot be used."""
        return accepted(self.tokens_file, self.tokens)

    def job_token_keys(self) -> list[str]:
        """Return the keys of tokens for one job, the one that signs first. Raises: `ConfigError`."""
        return job_token_keys(self.job_token_key_file)

    def own_url(self, host: str) -> str:
        """The URL of this listener. `host`: what to name for all addresses of this host."""
        named = host if self.listen.host in ("0.0.0.0", "::") else self.listen.host  # noqa: S104 - not bound
        return f"{'https' if self.tls_cert else 'http'}://{values.bracketed(named)}:{self.listen.port}"


@dataclass(frozen=True, kw_only=True)
class Mqtt(Section):
    url: BrokerUrl | None = _key(None, '"mqtt://host:1883" or "mqtts://host:8883"; empty: off.')
    username: str = _key("", "User at the broker; empty: none.", live=True)
    password: Secret = _key(Secret(), "Better in password_file, or as the credential mqtt-password.", live=True)
    password_file: Path | None = _key(None, "A file with the password alone.", live=True, credential="mqtt-password")
    tls: Tls | None = _key(
        None, "TLS for an mqtts:// broker. Without this table its certificate is checked with the system's CAs."
    )
    version: Literal["auto", "5", "3.1.1"] = _key(
        "auto", "The protocol. auto: MQTT 5, or 3.1.1 if the broker refuses it or closes the connection at it."
    )
    client_id: str = _key("", "The client ID at the broker; empty: correlator-{instance}.")
    instance: str = _key(
        "", "The level of every topic that names this daemon; empty: the host name.", values.topic_level
    )
    prefix: str = _key("correlator/v1", "The levels of every topic before `instance`.", values.topic)
    home_assistant: bool = _key(
        False,
        "Make each VM a device in Home Assistant, by MQTT discovery: status, progress, end and problem of its newest"
        " job. Off again, the devices are removed.",
    )

    @property
    def root(self) -> str:
        """The first levels of every topic."""
        return f"{self.prefix}/{self.instance}"


@dataclass(frozen=True, kw_only=True)
class State(Section):
    directory: Path = _key(
        Path(),
        "Directory of the checkpoint; empty: $STATE_DIRECTORY, else ~/.local/state/correlator.",
        values.directory,
    )


@dataclass(frozen=True, kw_only=True)
class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = _key("info", "The lowest level that is logged.", live=True)
    format: Literal["auto", "text", "json", "journal"] = _key(
        "auto", "Format of each line. auto: journal if standard error is the journal, else text.", live=True
    )


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """All settings. `config.loading.load` creates them."""

    database: Database = _key(Database(), "The appliance's database. The account needs only SELECT on the four tables.")
    jobs: Jobs = _key(Jobs(), "Jobs in memory.")
    labels: Labels = _key(
        Labels(), "Titles that people read instead of JobLog's names; documents then have a `title` too."
    )
    failures: Failures = _key(Failures(), "What you know of failures.")
    http: Http = _key(Http(), "REST, websocket and the live page.")
    mqtt: Mqtt = _key(Mqtt(), "The MQTT broker to which job states and events are published.")
    otlp: Otlp = _key(Otlp(), "OpenTelemetry: every ended job is sent as a trace.")
    cluster: Cluster = _key(
        Cluster(), "A fleet on NATS JetStream: this daemon writes its jobs there, and gateways serve them."
    )
    state: State = _key(State(), "State that survives a restart.")
    log: Log = _key(Log(), "The log on standard error.")
    webhooks: tuple[Webhook, ...] = _key(
        (),
        "Receivers of events by HTTP, one table each, at most 16; only in the file, not in the environment.",
        live=True,
    )


class Key(NamedTuple):
    """A key of a section, as declared above.

    `kind`: the type of its values, without None; of a repeated table, that of one. For the others see `values.key`.
    """

    name: str
    hint: Any
    kind: Any
    default: Any
    parse: Callable[[object], object] | None
    description: str
    live: bool
    credential: str
    limits: Mapping[str, Any]

    @property
    def section(self) -> type[Section] | None:
        """The type of the table, if the key is a table."""
        return self.kind if isinstance(self.kind, type) and issubclass(self.kind, Section) else None

    @property
    def is_optional(self) -> bool:
        """True if an empty text stands for None."""
        return type(None) in get_args(self.hint)

    @property
    def is_secret(self) -> bool:
        """True if no message may repeat a value."""
        return isinstance(self.kind, type) and issubclass(self.kind, Secret)

    @property
    def is_url(self) -> bool:
        """True if a value is a URL, of which a message shows only scheme and host."""
        return self.name == "url" or self.name.endswith("_url")

    @property
    def repeated(self) -> bool:
        """True if there may be any number of these tables."""
        return self.section is not None and isinstance(self.default, tuple)

    def header(self, above: str = "") -> str:
        """The line that begins the table. `above`: the dotted name of the table around it, with a dot at its end."""
        return f"[[{above}{self.name}]]" if self.repeated else f"[{above}{self.name}]"

    @property
    def is_duration(self) -> bool:
        return self.kind is float

    @property
    def bounds(self) -> str:
        """The bounds of a number in words, each after a comma."""
        words = {"ge": "at least", "gt": "more than", "le": "at most"}
        return "".join(
            f", {words[limit]} {values.duration(bound) if self.is_duration else bound}"
            for limit, bound in self.limits.items()
        )

    @property
    def expected(self) -> str:
        """The expected value, in words, for a key without a parser."""
        if self.kind is Literal:
            return "one of " + ", ".join(map(json.dumps, get_args(self.hint)))
        kinds = {bool: "true or false", int: "a whole number", float: "a duration", str: "a text"}
        return f"{kinds.get(self.kind, 'a list of texts')}{self.bounds}, e.g. {toml(self.default)}"


def keys(section: type[Section]) -> dict[str, Key]:
    """Return the keys of `section` by name, in the order of declaration."""
    return {declared.name: _key_of(declared) for declared in fields(section)}


def leaves(section: type[Section] | None = None, above: str = "", *, live: bool = False) -> Iterator[tuple[str, Key]]:
    """Yield every key that is not a table, with its dotted name. Those of repeated tables have none.

    `live`: a reload applies all keys of this table.
    """
    for key in keys(section or Config).values():
        if key.repeated:
            continue
        if key.section:
            yield from leaves(key.section, f"{above}{key.name}.", live=live or key.live)
        else:
            yield above + key.name, key._replace(live=live or key.live)


def repeated_tables(section: type[Section] | None = None, above: str = "") -> Iterator[tuple[str, Key]]:
    """Yield each table of which there may be several, with its dotted name."""
    for key in keys(section or Config).values():
        if key.repeated:
            yield above + key.name, key
        elif key.section:
            yield from repeated_tables(key.section, f"{above}{key.name}.")


def settings(section: Section, above: str = "") -> Iterator[tuple[str, Key, Any]]:
    """Yield every key of the tables that are there, its dotted name first and its value last.

    Repeated tables are numbered from 1.
    """
    for key in keys(type(section)).values():
        value = getattr(section, key.name)
        if key.repeated:
            for number, table in enumerate(value, 1):
                yield from settings(table, f"{above}{key.name}[{number}].")
        elif isinstance(value, Section):
            yield from settings(value, f"{above}{key.name}.")
        elif key.section is None:
            yield above + key.name, key, value


def value_of(config: "Config", dotted: str) -> Any:
    """Return the value of a key by its dotted name; None if its table is absent."""
    value: Any = config
    for name in dotted.split("."):
        value = getattr(value, name, None)
    return value


def _key_of(declared: Field[Any]) -> Key:
    hint, about = declared.type, declared.metadata
    kind: Any = get_origin(hint)
    if kind is UnionType or (kind is tuple and hint != tuple[str, ...]):
        kind = get_args(hint)[0]
    kind = kind or hint
    parse = about["parse"] or values.PARSERS.get(kind) or getattr(kind, "parse", None)
    own = (declared.name, hint, kind, declared.default, parse)
    return Key(*own, *(about[name] for name in ("description", "live", "credential", "limits")))
