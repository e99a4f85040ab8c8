"""The schema of the configuration: every section and key, with its type, default, bounds and description.

A key is declared only here: loading, the names of environment variables, suggestions for misspelled names and the
generated reference are derived from these types. Values are frozen, durations are seconds, and a repr hides secrets.
Defaults that depend on the machine (state.directory, mqtt.instance, cluster.instance) are filled in by
`loading.load`.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from correlator.config import values
from correlator.config.cluster import Cluster
from correlator.config.otlp import Otlp
from correlator.config.tls import Tls
from correlator.config.values import BrokerUrl, DatabaseUrl, Listen, MysqlUrl, Secret, Section, Size, labels, toml
from correlator.config.values import described as _key
from correlator.config.webhooks import Webhook


class Database(Section, frozen=True, kw_only=True):
    url: Annotated[
        DatabaseUrl,
        _key(
            'Where the tables are: "mysql://user[:password]@host:port/database" or "sqlite:///path/to/file.db".',
            values.database_url,
        ),
    ] = MysqlUrl(user="correlator", host="127.0.0.1", port=3306, database="migratekit_oma")
    unix_socket: Annotated[
        Path | None, _key("Socket of a server on this host, used in place of the URL's host and port.")
    ] = None
    password: Annotated[
        Secret, _key("The password. Better in password_file, or as the credential db-password.", live=True)
    ] = Secret()
    password_file: Annotated[
        Path | None, _key("A file that holds the password and nothing else.", live=True, credential="db-password")
    ] = None
    tls: Annotated[Tls | None, _key("TLS for the connection. Without this table the connection is not encrypted.")] = (
        None
    )
    timezone: Annotated[
        str,
        _key(
            "Zone of the DATETIME columns, an IANA name. auto: this host's zone if the server runs on this host and has"
            " the same offset, else the server's current offset, queried every 5 s.",
            values.zone,
        ),
    ] = "auto"
    connect_timeout: Annotated[float, _key("Time to reach the server and log in.", gt=0)] = 5.0
    query_timeout: Annotated[float, _key("Time for each query.", gt=0)] = 10.0
    driver: Annotated[
        Literal["auto", "aiomysql", "asyncmy"],
        _key("The client library. auto: asyncmy if it is installed, else aiomysql."),
    ] = "auto"
    doorbell: Annotated[
        bool,
        _key(
            "Also read MariaDB's binary log, so that committed rows are read within milliseconds. Needs log_bin and"
            " the right REPLICATION SLAVE; without them the daemon only polls."
        ),
    ] = False
    poll_interval: Annotated[
        float,
        _key(
            "Between two queries of log_events while jobs run, or while clients are connected and something"
            " happened within the last 10 s.",
            ge=0.001,
        ),
    ] = 0.02
    idle_poll_interval: Annotated[float, _key("The same at all other times.", ge=0.001)] = 0.25
    reconcile_interval: Annotated[
        float, _key("Between two queries of job_tracking and job_steps for the running jobs.", ge=0.05)
    ] = 1.0


class Jobs(Section, frozen=True, kw_only=True):
    retention: Annotated[float, _key("How long ended jobs stay in memory.", ge=0)] = 24 * 3600.0
    max_jobs: Annotated[
        int,
        _key(
            "The maximum number of jobs in memory. Those that ended first are removed first, running ones never.", ge=1
        ),
    ] = 20000
    stalled_after: Annotated[
        float, _key("A running job that has been silent for longer is stalled.", live=True, gt=0)
    ] = 600.0
    external_id_keys: Annotated[
        tuple[str, ...], _key("Keys of attrs and of job_tracking.metadata that hold external IDs.")
    ] = ("external_job_id", "failover_job_id", "gui_job_id")
    history: Annotated[float, _key("How far back a first start reads.", ge=0)] = 24 * 3600.0
    legacy: Annotated[bool, _key("Follow failover_jobs too.")] = True
    max_metadata: Annotated[
        Size,
        _key(
            "Maximum bytes of a job's published metadata. Larger metadata loses its largest members, which `_cut`"
            " names; external IDs and the VM's name are kept."
        ),
    ] = Size(16_000)
    max_error: Annotated[
        Size,
        _key(
            "Maximum bytes of the published error of a job or a step. The long errors of a job's steps share 8 times"
            " as many."
        ),
    ] = Size(8_000)


class Labels(Section, frozen=True, kw_only=True):
    operations: Annotated[
        tuple[str, ...], _key('Titles of operations, e.g. "unified-live-failover = Live failover".', labels)
    ] = ()
    steps: Annotated[tuple[str, ...], _key('Titles of steps, e.g. "final-sync = Final synchronisation".', labels)] = ()


class Http(Section, frozen=True, kw_only=True):
    listen: Annotated[Listen, _key('"host:port" or "[::1]:port". Port 0: any free port.')] = Listen(
        host="127.0.0.1", port=8686
    )
    insecure: Annotated[
        bool, _key("Allow a `listen` that is not loopback without a token: everybody on the network can read.")
    ] = False
    allowed_origins: Annotated[
        tuple[str, ...],
        _key(
            'Origins of pages that may connect, e.g. "https://gui.example". Its own origin always may.',
            values.origins,
            live=True,
        ),
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        _key(
            "Names accepted in the Host header, in addition to the listen address and localhost.",
            values.hosts,
            live=True,
        ),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        _key(
            "Addresses or networks of proxies whose X-Forwarded-For is believed: limits count their clients, not them.",
            values.networks,
            live=True,
        ),
    ] = ()
    tokens_file: Annotated[
        Path | None,
        _key(
            "File of the tokens that clients may use, one a line, # comments. Also as the credential api-token.",
            live=True,
            credential="api-token",
        ),
    ] = None
    tls_cert: Annotated[Path | None, _key("Certificate chain (PEM): https on this listener.", live=True)] = None
    tls_key: Annotated[Path | None, _key("Its private key (PEM).", live=True)] = None
    max_readers: Annotated[int, _key("Maximum number of websockets and event streams at once.", live=True, ge=1)] = (
        10000
    )
    max_readers_per_address: Annotated[int, _key("The same for one address.", live=True, ge=1)] = 10000
    max_subscriptions: Annotated[int, _key("Maximum number of subscriptions of one connection.", ge=1)] = 100
    unknown_id_wait: Annotated[
        float,
        _key(
            "How long GET /api/v1/failover/{id}/status waits for a job with an unknown ID before it answers 404."
            " 0 turns the wait off.",
            ge=0,
        ),
    ] = 3.0


class Mqtt(Section, frozen=True, kw_only=True):
    url: Annotated[BrokerUrl | None, _key('"mqtt://host:1883" or "mqtts://host:8883"; empty: off.')] = None
    username: Annotated[str, _key("User at the broker; empty: none.", live=True)] = ""
    password: Annotated[
        Secret, _key("The password. Better in password_file, or as the credential mqtt-password.", live=True)
    ] = Secret()
    password_file: Annotated[
        Path | None, _key("A file that holds the password and nothing else.", live=True, credential="mqtt-password")
    ] = None
    tls: Annotated[
        Tls | None,
        _key("TLS for an mqtts:// broker. Without this table its certificate is checked with the system's CAs."),
    ] = None
    client_id: Annotated[str, _key("The client ID at the broker; empty: correlator-{instance}.")] = ""
    instance: Annotated[
        str, _key("The level of every topic that names this daemon; empty: the host name.", values.topic_level)
    ] = ""
    prefix: Annotated[str, _key("The levels of every topic before `instance`.", values.topic)] = "correlator/v1"

    @property
    def root(self) -> str | None:
        """The first levels of every topic; None if no broker is configured."""
        return f"{self.prefix}/{self.instance}" if self.url is not None else None


class State(Section, frozen=True, kw_only=True):
    directory: Annotated[
        Path,
        _key("Directory of the checkpoint; empty: $STATE_DIRECTORY, else ~/.local/state/correlator.", values.directory),
    ] = Path()


class Log(Section, frozen=True, kw_only=True):
    level: Annotated[
        Literal["debug", "info", "warning", "error"], _key("The lowest level that is logged.", live=True)
    ] = "info"
    format: Annotated[
        Literal["auto", "text", "json", "journal"],
        _key("Format of each line. auto: journal if standard error is the journal, else text.", live=True),
    ] = "auto"


class Config(Section, frozen=True, kw_only=True):
    """All settings. `config.loading.load` creates them."""

    database: Annotated[
        Database, _key("The appliance's database. The account needs only SELECT on the four tables.")
    ] = Database()
    jobs: Annotated[Jobs, _key("Jobs in memory.")] = Jobs()
    labels: Annotated[
        Labels, _key("Titles that people read instead of JobLog's names; documents then have a `title` too.")
    ] = Labels()
    http: Annotated[Http, _key("REST, websocket and the live page.")] = Http()
    mqtt: Annotated[Mqtt, _key("The MQTT broker to which job states and events are published.")] = Mqtt()
    otlp: Annotated[Otlp, _key("OpenTelemetry: every ended job is sent as a trace.")] = Otlp()
    cluster: Annotated[
        Cluster, _key("A fleet on NATS JetStream: this daemon writes its jobs there, and gateways serve them.")
    ] = Cluster()
    state: Annotated[State, _key("State that survives a restart.")] = State()
    log: Annotated[Log, _key("The log on standard error.")] = Log()
    webhooks: Annotated[
        tuple[Webhook, ...],
        _key(
            "Receivers of events by HTTP, one table each, at most 16; only in the file, not in the environment.",
            live=True,
        ),
    ] = ()


class Key(NamedTuple):
    """A key of a section, as declared above.

    `kind`: the type of its values, without None; of a repeated table, that of one. `live`, `credential`: see
    `described`.
    """

    name: str
    hint: Any
    kind: Any
    description: str
    parse: Callable[[object], object] | None
    live: bool
    credential: str
    default: Any

    @property
    def section(self) -> type[Section] | None:
        """The type of the table, if the key is a table."""
        return self.kind if isinstance(self.kind, type) and issubclass(self.kind, Section) else None

    @property
    def is_optional(self) -> bool:
        """True if an empty text stands for None."""
        return type(None) in get_args(get_args(self.hint)[0])

    @property
    def is_secret(self) -> bool:
        """True if no message may repeat a value."""
        return isinstance(self.kind, type) and issubclass(self.kind, Secret)

    @property
    def repeated(self) -> bool:
        """True if there may be any number of these tables."""
        return self.section is not None and isinstance(self.default, tuple)

    @property
    def header(self) -> str:
        """The line that begins the table."""
        return f"[[{self.name}]]" if self.repeated else f"[{self.name}]"

    @property
    def is_duration(self) -> bool:
        return self.kind is float

    @property
    def bounds(self) -> str:
        """The bounds of a number in words, each after a comma."""
        meta = get_args(self.hint)[1]
        return "".join(
            f", {word} {values.duration(bound) if self.is_duration else bound}"
            for word, bound in (("at least", meta.ge), ("more than", meta.gt), ("at most", meta.le))
            if bound is not None
        )

    @property
    def expected(self) -> str:
        """The expected value, in words, for a key without a parser."""
        if self.kind is Literal:
            return "one of " + ", ".join(map(json.dumps, get_args(get_args(self.hint)[0])))
        kinds = {bool: "true or false", int: "a whole number", float: "a duration", str: "a text"}
        return f"{kinds.get(self.kind, 'a list of texts')}{self.bounds}, e.g. {toml(self.default)}"


def keys(section: type[Section]) -> dict[str, Key]:
    """Return the keys of `section` by name, in the order of declaration."""
    hints = get_type_hints(section, include_extras=True)
    return {field.name: _declared(field, hints[field.name]) for field in msgspec.structs.fields(section)}


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


def _declared(field: Any, hint: Any) -> Key:
    base, meta = get_args(hint)
    kind = get_origin(base)
    if kind is UnionType or (kind is tuple and base != tuple[str, ...]):
        kind = get_args(base)[0]
    kind = kind or base
    parse = meta.extra["parse"] or values.PARSERS.get(kind) or getattr(kind, "parse", None)
    return Key(
        field.name, hint, kind, meta.description, parse, meta.extra["live"], meta.extra["credential"], field.default
    )
