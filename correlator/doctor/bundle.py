"""A support bundle: one file for remote support, without secrets, readable by its owner only.

A member that is not available is listed in the MANIFEST and is not an error: a bundle is made when something is broken,
the configuration too. The fields of the configuration that hold secrets are redacted by their types; besides, no value
of a JSON document and no text contains a known secret (`Hidden`).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import platform
import re
import socket
import tarfile
import time
from collections.abc import Awaitable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote, quote_plus

import msgspec

from correlator import __version__
from correlator.config.editing import replacing
from correlator.config.loading import variable
from correlator.config.rendering import redacted
from correlator.config.schema import PATH, leaves, read_headers, settings
from correlator.config.values import SqliteUrl, hidden_in_url
from correlator.doctor import host, service
from correlator.doctor.database import Link
from correlator.doctor.examination import Examined, examine
from correlator.doctor.service import Setting
from correlator.errors import ConfigError, CorrelatorError
from correlator.sources.databases import database_of
from correlator.sources.db.session import TABLES

LOG_LINES = 5_000
LOG_WITHIN = 30.0
SCHEMA_WITHIN = 30.0

_HIDDEN = "***"

ANYWHERE, AS_WORD = 8, 4
"""Least characters of a secret that is hidden anywhere, and of one that is hidden where it is a word of its own. A
shorter one is hidden where it is the value of a field: as a word it may be any number or syllable."""

_FIELD = r"(?i:pass\w*|pwd|secret|\w*token|\w*key|authorization|bearer|basic)(?:\\?[\"'])?\s*[ =:]\s*(?:\\?[\"'])?|://[^\s/@:]*:"
_WRITTEN = re.compile(
    r"""(?im)^[ \t#]*[\w."-]*(?:pas+|secret|token|auth|key|url)\w*(?<!_file)[ \t]*=[ \t]*"""
    r"""(?P<quote>["']{0,3})(?P<value>.*?)(?P=quote)[ \t]*(?:#.*)?$"""
)
"""A key of a file of the configuration that may hold a secret, with its value."""

_GIVES_VALUES = re.compile(
    r"(?P<before>\s*(?P<comment>[#;][#;\s]*)?(?:Environment|SetCredential\w*)\s*=\s*)\S", re.IGNORECASE
)
_COMMENT = re.compile(r"\s*[#;]")
_GOES_ON = re.compile(r"(?<!\\)(?:\\\\)*\\\s*\Z")
_PAINT = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Unwritten(CorrelatorError):
    """The file of the bundle cannot be written."""


def name() -> str:
    return f"correlator-support-{socket.gethostname()}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz"


async def support_bundle(
    file: Path | None, target: Path | None, stdout: TextIO, environ: Mapping[str, str], *, gateway: bool = False
) -> int:
    """Write a support bundle, also of a wrong configuration, and return 0. Raises Unwritten if it cannot be written."""
    setting = service.load(file, environ, gateway=gateway, usable=True)
    examined = await examine(setting, token=environ.get("CORRELATOR_TOKEN", ""))
    made = write(target or Path(name()), await gather(setting, examined))
    if setting.problems:
        check = "correlator check-config --gateway" if gateway else "correlator check-config"
        stdout.write(f"The configuration is wrong; {check} lists its errors. So does doctor.json.\n")
    stdout.write(f"{made}: only you can read it. Check its contents before you send it.\n")
    return 0


async def gather(setting: Setting, examined: Examined) -> dict[str, str]:
    """Return the members of the bundle by name, without secrets. MANIFEST describes each, and lists missing ones.

    A gateway has neither tables nor a checkpoint.
    """
    unit = service.GATEWAY_UNIT if setting.gateway else service.UNIT
    found, hide = examined.daemon, Hidden(secrets(setting))
    silent = "the process did not answer, or refused the token: see doctor.json"
    members = {"MANIFEST": ""}
    manifest = [f"correlator {__version__}, {service.stamp()}, {socket.gethostname()}", ""]
    lacking = []

    def add(member: str, what: str, content: Any, why: str = "") -> None:
        """Add a text, or values as JSON; if `content` is None, say `why` there is none."""
        if content is None:
            lacking.append(f"{member}: {what}: {why}")
            return
        manifest.append(f"{member}: {what}")
        is_text = isinstance(content, str)
        members[member] = hide(content) if is_text else json.dumps(hide.values(content), indent=2) + "\n"

    of_unit = {"variables_of_unit": sorted(await service.variables_of(unit))}
    add("configuration.json", "the configuration, without secrets", _configuration(setting) | of_unit)
    add("doctor.json", "correlator doctor -o json", examined.report.document())
    add("ready.json", "/health/ready of the running process", found.ready, silent)
    add("live.json", "/health/live of the running process", found.live, silent)
    add("metrics.txt", "/metrics of the running process", found.metrics, silent)
    to_get: list[tuple[str, str, Awaitable[str]]] = [
        ("log.txt", f"the last {LOG_LINES} lines of the journal of {unit}", _log(unit)),
        ("unit.txt", f"systemctl status and cat of {unit}", _unit(unit)),
    ]
    if not setting.gateway:
        figures = msgspec.to_builtins(examined.checkpoint)
        why = "there is none, or it cannot be read: see doctor.json"
        add("checkpoint.json", "what the checkpoint holds, in figures", figures, why)
        to_get.insert(0, ("schema.sql", "the tables, from SHOW CREATE TABLE", _schema(setting)))
    add("versions.json", "programs and libraries", _versions(examined))
    for member, what, getting in to_get:
        try:
            add(member, what, await getting)
        except (CorrelatorError, OSError, TimeoutError) as error:  # FileNotFoundError: no such program
            add(member, what, None, str(error) or type(error).__name__)
    manifest += ["", "Not available:", *lacking] if lacking else []
    return members | {"MANIFEST": hide("\n".join(manifest) + "\n")}


def write(target: Path, members: dict[str, str]) -> Path:
    """Write the file atomically, with mode 0600. Raises Unwritten."""
    folder = re.sub(r"\.tar\.gz$|\.tgz$", "", target.name)
    now = int(time.time())
    try:
        with replacing(target) as raw, tarfile.open(fileobj=raw, mode="w:gz") as tar:
            for member, text in members.items():
                content = text.encode("utf-8", "backslashreplace")
                entry = tarfile.TarInfo(f"{folder}/{member}")
                entry.size, entry.mtime, entry.mode = len(content), now, 0o600
                tar.addfile(entry, io.BytesIO(content))
    except OSError as error:
        raise Unwritten(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def secrets(setting: Setting) -> list[str]:
    """Return every secret of the configuration; of one with problems also what its files may mean as one."""
    config = setting.config
    found = [value.reveal() for _, key, value in settings(config) if key.is_secret and value]
    found.append(setting.environ.get("CORRELATOR_TOKEN", ""))
    for webhook in config.webhooks:
        found.append(webhook.authorization.reveal().rpartition(" ")[2])
        found += [base64.b64encode(key).decode().rstrip("=") for key in webhook.secret.keys]
        if webhook.url is not None:
            found += hidden_in_url(webhook.url.reveal())
    if config.otlp.url is not None and config.otlp.url.reveal() != str(config.otlp.url):
        found += hidden_in_url(config.otlp.url.reveal().removesuffix(PATH))
    with contextlib.suppress(ConfigError):  # the file changed after it was read
        found += [token.secret for token in config.http.read_tokens()]
    with contextlib.suppress(ConfigError):
        found += config.http.job_token_keys()
    with contextlib.suppress(ConfigError):
        # Of "Bearer TOKEN", the token may stand alone somewhere.
        found += [
            word
            for value in read_headers((), config.otlp.headers_file).values()
            for word in (value, *value.split()[1:])
        ]
    if setting.problems:
        for file in setting.files:
            with contextlib.suppress(OSError):
                found += _written(file.read_text(encoding="utf-8", errors="replace"))
        keys = {variable(dotted): key for dotted, key in leaves()}
        for name, text in setting.environ.items():
            if name in keys and (keys[name].is_url or keys[name].is_secret):
                found += [text, *hidden_in_url(text)]
    return [secret for secret in found if secret]


def _written(text: str) -> list[str]:
    """Return the values of a file that is not right, whose keys may be those of secrets."""
    found = []
    for match in _WRITTEN.finditer(text):
        values = [match["value"]]
        with contextlib.suppress(ValueError):  # TOML knows the escapes of JSON
            values.append(json.loads(f'"{match["value"]}"'))
        found += [secret for value in values for secret in hidden_in_url(value)]
    return found


class Hidden:
    """Replaces `secrets` in a text, also in the encodings of URL, JSON and Base64. See `ANYWHERE` for short ones."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms: set[str] = set()
        for secret in secrets:
            raw = secret.encode("utf-8", "surrogateescape")
            forms |= {secret, quote(secret, safe=""), quote(secret), quote_plus(secret)}
            forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
            forms |= {base64.b64encode(raw).decode().rstrip("="), base64.urlsafe_b64encode(raw).decode().rstrip("=")}
        # The longest first, as one form may be the beginning of another.
        ordered = sorted(forms, key=len, reverse=True)
        anywhere = [_any_case(form) for form in ordered if len(form) >= ANYWHERE]
        words = [rf"(?<!\w){_any_case(form)}(?!\w)" for form in ordered if AS_WORD <= len(form) < ANYWHERE]
        values = [_any_case(form) for form in ordered if len(form) < AS_WORD]
        of_fields = [rf"(?P<field>{_FIELD})(?:{'|'.join(values)})(?!\w)"] if values else []
        patterns = [*anywhere, *words, *of_fields]
        self._pattern = re.compile("|".join(patterns)) if patterns else None
        self._keeps_field = bool(of_fields)

    def __call__(self, text: str) -> str:
        if self._pattern is None:
            return text
        if not self._keeps_field:
            return self._pattern.sub(_HIDDEN, text)
        return self._pattern.sub(lambda match: (match["field"] or "") + _HIDDEN, text)

    def values(self, document: Any) -> Any:
        """Replace secrets in the values of a JSON document, which stays one."""
        match document:
            case str():
                return self(document)
            case dict():
                return {name: self.values(value) for name, value in document.items()}
            case list() | tuple():
                return [self.values(value) for value in document]
            case _:
                return document


def _any_case(form: str) -> str:
    """Return `form` as a pattern whose percent-encoded bytes match in either case (%2f is %2F)."""
    parts = re.split(r"(%[0-9A-F]{2})", form)
    return "".join(f"(?i:{part})" if re.fullmatch("%[0-9A-F]{2}", part) else re.escape(part) for part in parts)


def _configuration(setting: Setting) -> dict[str, Any]:
    return {
        "file": str(setting.file) if setting.file is not None else None,
        "files": [str(file) for file in setting.files],
        "set_twice": list(setting.twice),
        "variables": setting.variables,
        "settings": redacted(setting.config),
    }


def _versions(examined: Examined) -> dict[str, Any]:
    return {
        "correlator": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libraries": host.libraries(),
        "broker": examined.broker_version,
    }


async def _schema(setting: Setting) -> str:
    """Return the statement of each table, or the reason why there is none."""
    config = setting.config
    link = Link(database_of(config), lambda: service.as_account(config))
    texts = []
    try:
        async with asyncio.timeout(SCHEMA_WITHIN):
            await link.open()
            for table in TABLES:
                try:
                    if isinstance(config.database.url, SqliteUrl):
                        rows = await link.query("SELECT name, sql FROM sqlite_master WHERE name = ?", (table,))
                    else:
                        rows = await link.query(f"SHOW CREATE TABLE {table}")
                    texts.append(f"{rows[0][1]};" if rows else f"-- {table}: there is none")
                except CorrelatorError as error:
                    texts.append(f"-- {table}: {error}")
    finally:
        await link.close()
    return "\n\n".join(texts) + "\n"


async def _log(unit: str) -> str:
    command = ("journalctl", "-u", unit, "-n", str(LOG_LINES), "--no-pager", "-o", "short-iso-precise")
    code, out = await service.run(*command, within=LOG_WITHIN)
    if code:
        raise CorrelatorError(f"journalctl ended with {code}: {out.strip()[:200]}")
    return out


async def _unit(unit: str) -> str:
    texts = []
    for command in (("systemctl", "status", "--no-pager", unit), ("systemctl", "cat", unit)):
        _, out = await service.run(*command, within=LOG_WITHIN)
        texts.append(f"$ {' '.join(command)}\n{without_values(out)}")
    return "\n".join(texts)


def without_values(text: str) -> str:
    """Return files of a unit with the values of `Environment=` and `SetCredential…=` replaced, also in comments.

    These values belong to the service; the shell's environment does not show which are secrets, so all are replaced.
    """
    kept: list[str] = []
    commented = goes_on = False
    for line in re.split(r"\r\n|[\r\n\0]", _PAINT.sub("", text)):  # exactly the line ends of systemd
        if goes_on:
            # systemd ignores a comment within a value, and the line after it still belongs to the value.
            goes_on = bool(_GOES_ON.search(line) or (_COMMENT.match(line) and not commented))
            continue
        given = _GIVES_VALUES.match(line)
        kept.append(given["before"] + _HIDDEN if given is not None else line)
        commented = given is not None and bool(given["comment"])
        goes_on = given is not None and bool(_GOES_ON.search(line))
    return "\n".join(kept)
