"""The settings: every section and key there is, with its type, default, bounds and meaning.

A key is declared here and nowhere else: loading, the environment's names, the nearest right name and the generated
reference all follow from these types. Values are frozen, durations are seconds, and no secret shows in a repr.
Defaults that depend on the machine (state.directory, mqtt.instance, mqtt.client_id) are filled in by `config.load`.
"""

import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from correlator import values
from correlator.values import BrokerUrl, DatabaseUrl, Listen, MysqlUrl, Secret


def _key(description: str, parse: Callable[[object], object] | None = None, **bounds: Any) -> msgspec.Meta:
    """`parse` turns what is written into the value, or raises ValueError with what would be right."""
    return msgspec.Meta(description=description, extra={"parse": parse}, **bounds)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


class Tls(Section, frozen=True, kw_only=True):
    ca: Annotated[Path | None, _key("CA certificates to trust (PEM); empty: the system's.", values.optional_path)] = (
        None
    )
    cert: Annotated[
        Path | None, _key("Client certificate (PEM), for a peer that asks for one.", values.optional_path)
    ] = None
    key: Annotated[Path | None, _key("Private key of `cert` (PEM).", values.optional_path)] = None
    verify: Annotated[bool, _key("Check the peer's certificate and its host name.")] = True


class Database(Section, frozen=True, kw_only=True):
    url: Annotated[
        DatabaseUrl,
        _key(
            'Where the tables are: "mysql://user[:password]@host:port/database" or "sqlite:///path/to/file.db".',
            values.database_url,
        ),
    ] = MysqlUrl(user="correlator", host="127.0.0.1", port=3306, database="migratekit_oma")
    unix_socket: Annotated[
        Path | None,
        _key("Socket of a server on this host, used in place of the URL's host and port.", values.optional_path),
    ] = None
    password: Annotated[
        Secret, _key("The password. Better in password_file, or as the credential db-password.", values.secret)
    ] = Secret()
    password_file: Annotated[
        Path | None, _key("A file that holds the password and nothing else.", values.optional_path)
    ] = None
    tls: Annotated[Tls | None, _key("Encrypts the connection; without this table it is plain.")] = None
    timezone: Annotated[
        str,
        _key(
            "Zone of the DATETIME columns, an IANA name. auto: this host's zone if the server is here and agrees on"
            " the offset, else the server's current offset, looked up again and again.",
            values.zone,
        ),
    ] = "auto"
    connect_timeout: Annotated[float, _key("Time to reach the server and log in.", values.seconds, gt=0)] = 5.0
    query_timeout: Annotated[float, _key("Time for each query.", values.seconds, gt=0)] = 10.0
    driver: Annotated[
        Literal["auto", "aiomysql", "asyncmy"],
        _key("The client library. auto: asyncmy where it is installed, else aiomysql."),
    ] = "auto"
    doorbell: Annotated[
        bool,
        _key(
            "Listen to MariaDB's binary log too, so that what is committed is read within milliseconds. Needs log_bin"
            " and the right REPLICATION SLAVE; where it cannot be had, polling goes on."
        ),
    ] = False
    poll_interval: Annotated[
        float,
        _key(
            "Between two looks at log_events, while jobs run, or readers watch and something has happened within 10 s.",
            values.seconds,
            ge=0.001,
        ),
    ] = 0.02
    idle_poll_interval: Annotated[
        float, _key("The same, while nothing runs and nothing happens.", values.seconds, ge=0.001)
    ] = 0.25
    gap_grace: Annotated[
        float,
        _key(
            "How long a missing id is waited for, once nothing shows any more that its row will come.",
            values.seconds,
            ge=0,
        ),
    ] = 5.0
    reconcile_interval: Annotated[
        float,
        _key("Between two comparisons of the running jobs with job_tracking and job_steps.", values.seconds, ge=0.05),
    ] = 1.0


class Jobs(Section, frozen=True, kw_only=True):
    retention: Annotated[float, _key("How long ended jobs stay in memory.", values.seconds, ge=0)] = 24 * 3600.0
    max_jobs: Annotated[int, _key("The most jobs in memory; the oldest ended ones leave first.", ge=1)] = 20000
    stalled_after: Annotated[
        float, _key("A running job that has been silent for longer is stalled.", values.seconds, gt=0)
    ] = 600.0
    external_id_keys: Annotated[
        tuple[str, ...], _key("Keys of attrs and of job_tracking.metadata that hold external IDs.")
    ] = ("external_job_id", "failover_job_id", "gui_job_id")
    history: Annotated[float, _key("How far back a first start reads.", values.seconds, ge=0)] = 24 * 3600.0
    legacy: Annotated[bool, _key("Follow failover_jobs too.")] = True


class Http(Section, frozen=True, kw_only=True):
    listen: Annotated[Listen, _key('"host:port" or "[::1]:port"; port 0: any free one.', values.listen)] = Listen(
        host="127.0.0.1", port=8686
    )
    insecure: Annotated[
        bool, _key("Serve everybody who reaches a `listen` that is no loopback address, without a token.")
    ] = False
    allowed_origins: Annotated[
        tuple[str, ...],
        _key('Pages that may connect, e.g. "https://gui.example"; the same origin always may.', values.origins),
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        _key("Names accepted in the Host header; the listen address and localhost always are.", values.hosts),
    ] = ()
    tokens_file: Annotated[
        Path | None,
        _key(
            "Tokens that clients may show, one a line, # comments. Also as the credential api-token.",
            values.optional_path,
        ),
    ] = None
    tls_cert: Annotated[Path | None, _key("Certificate chain (PEM): https on this listener.", values.optional_path)] = (
        None
    )
    tls_key: Annotated[Path | None, _key("Its private key (PEM).", values.optional_path)] = None
    max_readers: Annotated[int, _key("The most websockets and event streams at once.", ge=1)] = 10000
    max_readers_per_address: Annotated[int, _key("The most from one address.", ge=1)] = 10000
    max_subscriptions: Annotated[int, _key("The most subscriptions of one reader.", ge=1)] = 100


class Mqtt(Section, frozen=True, kw_only=True):
    url: Annotated[
        BrokerUrl | None, _key('"mqtt://host:1883" or "mqtts://host:8883"; empty: off.', values.broker_url)
    ] = None
    username: Annotated[str, _key("User at the broker; empty: none.")] = ""
    password: Annotated[
        Secret, _key("The password. Better in password_file, or as the credential mqtt-password.", values.secret)
    ] = Secret()
    password_file: Annotated[
        Path | None, _key("A file that holds the password and nothing else.", values.optional_path)
    ] = None
    tls: Annotated[Tls | None, _key("How to check an mqtts:// broker; without this table, by the system's CAs.")] = None
    client_id: Annotated[str, _key("The name of the session at the broker; empty: correlator-{instance}.")] = ""
    instance: Annotated[str, _key("This daemon's level in every topic; empty: the host name.", values.topic_level)] = ""
    prefix: Annotated[str, _key("The levels before it.", values.topic)] = "correlator/v1"


class State(Section, frozen=True, kw_only=True):
    directory: Annotated[
        Path,
        _key(
            "Where the checkpoint is kept; empty: $STATE_DIRECTORY, else ~/.local/state/correlator.", values.directory
        ),
    ] = Path()


class Log(Section, frozen=True, kw_only=True):
    level: Annotated[Literal["debug", "info", "warning", "error"], _key("The least that is logged.")] = "info"
    format: Annotated[
        Literal["auto", "text", "json", "journal"],
        _key("Of each line. auto: journal where the journal reads it, else text."),
    ] = "auto"


class Config(Section, frozen=True, kw_only=True):
    """All settings; `config.load` makes them."""

    database: Annotated[
        Database, _key("The appliance's database. SELECT on the four tables is all that is needed.")
    ] = Database()
    jobs: Annotated[Jobs, _key("What is kept of the jobs.")] = Jobs()
    http: Annotated[Http, _key("REST, websocket and the live page.")] = Http()
    mqtt: Annotated[Mqtt, _key("The broker that gets every job's state.")] = Mqtt()
    state: Annotated[State, _key("What outlives a restart.")] = State()
    log: Annotated[Log, _key("What is written to standard error.")] = Log()


class Key(NamedTuple):
    """One key of a section, as declared above. `section`: the type of its table, if it is one."""

    name: str
    hint: Any
    description: str
    parse: Callable[[object], object] | None
    section: type[Section] | None
    default: Any

    @property
    def is_duration(self) -> bool:
        return self.parse is values.seconds

    @property
    def expected(self) -> str:
        """What a value is to look like, in words; for a key whose parser does not say it better."""
        base, meta = get_args(self.hint)
        if get_origin(base) is Literal:
            return "one of " + ", ".join(json.dumps(choice) for choice in get_args(base))
        kinds = {bool: "true or false", int: "a whole number", float: "a number of seconds", str: "a text"}
        bounds = [
            f"{word} {bound}" for word, bound in (("at least", meta.ge), ("more than", meta.gt)) if bound is not None
        ]
        return ", ".join([kinds.get(base, "a list of texts"), *bounds, f"e.g. {toml(self.default)}"])


def keys(section: type[Section]) -> dict[str, Key]:
    """The keys of `section` by name, in the order of declaration."""
    hints = get_type_hints(section, include_extras=True)
    return {field.name: _declared(field, hints[field.name]) for field in msgspec.structs.fields(section)}


def leaves(section: type[Section] | None = None, above: str = "") -> Iterator[tuple[str, Key]]:
    """Every key that is no table, by its dotted name."""
    for key in keys(section or Config).values():
        if key.section:
            yield from leaves(key.section, f"{above}{key.name}.")
        else:
            yield above + key.name, key


def value_of(config: "Config", dotted: str) -> Any:
    """The value of a key by its dotted name; None in a table that is absent."""
    value: Any = config
    for name in dotted.split("."):
        value = getattr(value, name, None)
    return value


def toml(value: Any) -> str:
    """A key's value as it is written in the file; empty text for what is not set, and for a secret."""
    match value:
        case None | Secret():
            return '""'
        case Path():
            return json.dumps("" if value == Path() else str(value))
        case bool() | int():
            return json.dumps(value)
        case float():
            return values.duration(value)
        case tuple() | list():
            return json.dumps(value)
        case _:
            return json.dumps(str(value))


def reference() -> str:
    """A configuration file with every key at its default, commented out, under what it means."""
    lines = [
        "# The correlator's configuration. Every key is here with its default, and may also be given as",
        '# CORRELATOR_SECTION__KEY in the environment. Durations: seconds, or "500ms", "90s", "10m", "24h", "7d".',
    ]
    for section in keys(Config).values():
        lines += ["", *_comment(section.description), f"[{section.name}]"]
        lines += _key_lines(section.section or Section)
        for table in keys(section.section or Section).values():
            if table.section:
                lines += ["", *_comment(table.description), f"#[{section.name}.{table.name}]"]
                lines += _key_lines(table.section)
    return "\n".join(lines) + "\n"


def redacted(config: Section) -> dict[str, Any]:
    """`config` as plain values, for people to read: passwords are `***`, what is not set is an empty text."""
    return {
        key.name: _plain(getattr(config, key.name))
        for key in keys(type(config)).values()
        if not (key.section and getattr(config, key.name) is None)
    }


def _key_lines(section: type[Section]) -> Iterator[str]:
    for key in keys(section).values():
        if not key.section:
            yield from _comment(key.description)
            yield f"#{key.name} = {toml(key.default)}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="# ")


def _plain(value: Any) -> Any:
    match value:
        case Section():
            return redacted(value)
        case tuple():
            return list(value)
        case bool() | int() | float():
            return value
        case None:
            return ""
        case _:
            return str(value)


def _declared(field: Any, hint: Any) -> Key:
    base, meta = get_args(hint)
    sections = [kind for kind in (base, *get_args(base)) if isinstance(kind, type) and issubclass(kind, Section)]
    return Key(field.name, hint, meta.description, meta.extra["parse"], next(iter(sections), None), field.default)
