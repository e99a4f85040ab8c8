"""Settings as text: the configuration file with every default, and a configuration without its secrets."""

import hashlib
import textwrap
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any

from correlator.config.schema import Config, keys, settings
from correlator.config.values import Section, Size, toml

GATEWAY = ("http", "cluster", "log")
"""The sections that a gateway reads."""


OF_INSTANCE = ("jobs.", "labels.", "database.timezone", "mqtt.prefix", "mqtt.instance", "mqtt.home_assistant")
"""What decides about the jobs of an appliance and their topics begins with these."""

MAX_TEXT, MAX_NAMES = 100, 100
"""Characters of a value of `of_instance`, which has a hash of a longer one; settings that `differences` compares."""


def of_instance(config: Config) -> dict[str, str]:
    """Return the settings, as TOML, that have to be the same on each host of an instance in a cluster."""
    found = {}
    for name, _, value in settings(config):
        if name.startswith(OF_INSTANCE) and (config.mqtt.url is not None or not name.startswith("mqtt.")):
            text = toml(value)
            found[name] = text if len(text) <= MAX_TEXT else hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def differences(active: Mapping[str, object], ours: Mapping[str, str]) -> dict[str, str]:
    """Return what of `of_instance` differs between the active collector (empty: not known) and this process."""
    return {
        name: f"{str(active.get(name, 'not set'))[:MAX_TEXT]} there, {ours.get(name, 'not set')} here"
        for name in sorted(active.keys() | ours.keys())[:MAX_NAMES]
        if active and active.get(name) != ours.get(name)
    }


def reference() -> str:
    """Return a configuration file with every key, its description and its default, commented out."""
    return _file("The correlator's configuration:", "conf.d", "", tuple(keys(Config)))


def gateway_reference() -> str:
    """Return a configuration file of a gateway: as `reference`, with the sections that it reads."""
    return _file("The configuration of a gateway, which reads no database:", "gateway.d", "--gateway ", GATEWAY)


def _file(title: str, folder: str, option: str, names: Collection[str]) -> str:
    lines = [
        *_comment(
            f"{title} every key with its default. Leave this file as it is. Settings belong into files {folder}/*.toml"
            f" beside it, which win over it: correlator config set {option}KEY VALUE writes them there. An upgrade of"
            f" the package replaces this file, and moves what is set in it to {folder}/00-moved.toml."
        ),
        *_comment(
            "Every key may also be given as CORRELATOR_SECTION__KEY in the environment. Durations:"
            ' "500ms", "90s", "10m", "24h", "7d".'
        ),
    ]
    for section in (section for name, section in keys(Config).items() if name in names):
        lines += ["", *_comment(section.description)]
        if section.repeated:
            lines += _repeated_lines(section.header(), section.section or Section)
            continue
        lines += [section.header(), *_key_lines(section.section or Section)]
        for table in keys(section.section or Section).values():
            if not table.section:
                continue
            header = table.header(f"{section.name}.")
            lines += ["", *_comment(table.description)]
            lines += (
                _repeated_lines(header, table.section) if table.repeated else [f"#{header}", *_key_lines(table.section)]
            )
    return "\n".join(lines) + "\n"


def _repeated_lines(header: str, section: type[Section]) -> Iterator[str]:
    """Yield the lines of a table of which there may be several. None is the default, so they stay comments."""
    for line in (header, *_key_lines(section)):
        yield line if line.startswith("# ") else f"#     {line.removeprefix('#')}"


def redacted(config: Section) -> dict[str, Any]:
    """Return `config` as plain values for printing: passwords are `***`, an unset value is an empty string."""
    return {
        key.name: plain(getattr(config, key.name))
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


def plain(value: Any) -> Any:
    """Return a value for printing as JSON: a secret is `***`, an unset value an empty string."""
    match value:
        case Section():
            return redacted(value)
        case tuple():
            return [plain(one) for one in value]
        case Size():
            return str(value)
        case bool() | int() | float():
            return value
        case None:
            return ""
        case _:
            return value.isoformat() if isinstance(value, datetime) else str(value)
