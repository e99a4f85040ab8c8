"""The manual pages and the shells' completion, made from the program itself: click's help, and the declared settings.

This module adds only the parts of a manual page that the program itself does not have.
"""

import inspect
import re
from collections.abc import Iterator

import click
from click.shell_completion import get_completion_class

from correlator.cli import main
from correlator.config import schema, values
from correlator.config.values import Section

COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/correlator",
    "zsh": "usr/share/zsh/vendor-completions/_correlator",
    "fish": "usr/share/fish/vendor_completions.d/correlator.fish",
}
"""The file from which each shell loads the completion of a command."""

_EXIT_CODES = {
    "0": "It went well.",
    "1": "It failed.",
    "2": "The command line made no sense.",
    "78": "The configuration is wrong.",
}
_FILES = {
    "/etc/correlator/correlator.toml": "Every key of the configuration with its default, see correlator.toml(5).",
    "/etc/correlator/conf.d/*.toml": "The settings of this host, read after it.",
    "/etc/correlator/gateway.toml, gateway.d/*.toml": "The same for a gateway.",
    "/etc/correlator/db-password, mqtt-password, api-token, otlp-headers": (
        "Secrets that the service is given, one a file; each may be absent."
    ),
    "/var/lib/correlator": "The service's state. Deleted while the service is stopped, it costs reading the log again.",
    "/usr/share/doc/correlator": "Documents, and examples for the servers around it.",
}
_ENVIRONMENT = {
    "CORRELATOR_SECTION__KEY": "A key of the configuration, e.g. CORRELATOR_DATABASE__URL.",
    "CORRELATOR_URL": "Where the commands that ask a daemon find it.",
    "NO_COLOR": "Without colours.",
}


def completion(shell: str) -> str:
    """The script that makes `shell` complete the command, which it does by asking the program."""
    kind = get_completion_class(shell)
    if kind is None:
        raise ValueError(f"click knows no completion for {shell}")
    return kind(main, {}, "correlator", "_CORRELATOR_COMPLETE").source()


def command_page(version: str, day: str) -> str:
    """correlator(1); `day`: YYYY-MM-DD."""
    summary = main.get_short_help_str(200).rstrip(".")
    top = click.Context(main, info_name="correlator", **main.context_settings)
    lines = [
        *_head("correlator", "1", version, day, "User Commands"),
        *(".SH NAME", rf"correlator \- {_text(summary[0].lower() + summary[1:])}"),
        *(".SH SYNOPSIS", r".B correlator", r"\fICOMMAND\fR [\fIOPTION\fR]... [\fIARGUMENT\fR]..."),
        *(".SH DESCRIPTION", *_prose(main.help or "")),
        *_options(main, top),
        ".SH COMMANDS",
    ]
    lines += [line for name, command in main.commands.items() for line in _command(name, command, top)]
    lines += [
        ".SH EXIT STATUS",
        *_list(_EXIT_CODES),
        ".SH ENVIRONMENT",
        *_list(_ENVIRONMENT),
        ".SH FILES",
        *_list(_FILES),
    ]
    return "\n".join([*lines, ".SH SEE ALSO", ".BR correlator.toml (5)"]) + "\n"


def _command(name: str, command: click.Command, above: click.Context) -> Iterator[str]:
    """The section of a command; of a group, one for each of its commands."""
    inner = click.Context(command, info_name=name, parent=above)
    if isinstance(command, click.Group):
        for each, of_group in command.commands.items():
            yield from _command(f"{name} {each}", of_group, inner)
    elif not command.hidden:
        usage = " ".join(piece for piece in command.collect_usage_pieces(inner) if piece != "[OPTIONS]")
        yield from (f'.SS "{_text(f"{name} {usage}".strip())}"', *_prose(command.help or ""), *_options(command, inner))


def configuration_page(version: str, day: str) -> str:
    """correlator.toml(5)."""
    lines = [
        *_head("correlator.toml", "5", version, day, "File Formats"),
        *(".SH NAME", r"correlator.toml \- configuration of the correlator"),
        *(".SH SYNOPSIS", ".I /etc/correlator/correlator.toml", ".SH DESCRIPTION"),
        *_prose(
            "The file is TOML. After it, the files of /etc/correlator/conf.d that end in .toml are read in the order of"
            " their names, and the last value of a key is used. Settings belong there: correlator config set KEY VALUE"
            " writes them into conf.d/50-local.toml. A gateway reads /etc/correlator/gateway.toml and gateway.d."
            "\n\nEvery key may also be given as CORRELATOR_SECTION__KEY in the environment, which wins."
            ' Durations are texts with a unit, such as "500ms", "90s", "10m", "24h", "7d". An unknown key is an error.'
            "\n\ncorrelator check-config prints the effective configuration, or all of its errors."
        ),
    ]
    for section in schema.keys(schema.Config).values():
        lines += [f'.SH "{section.header()}"', *_prose(section.description), *_keys(section)]
        for table in schema.keys(section.section or Section).values():
            if table.section:
                lines += [f'.SS "{table.header(f"{section.name}.")}"', *_prose(table.description), *_keys(table)]
    return "\n".join([*lines, ".SH SEE ALSO", ".BR correlator (1)"]) + "\n"


def _keys(section: schema.Key) -> Iterator[str]:
    for key in schema.keys(section.section or Section).values():
        if not key.section:
            yield from _list({f"{key.name} = {values.toml(key.default)}": key.description})


def _head(name: str, number: str, version: str, day: str, part: str) -> Iterator[str]:
    yield r".\" Made from the program by deploy/debian/manual.py"
    yield f'.TH "{name.upper()}" "{number}" "{day}" "correlator {version}" "{part}"'
    yield ".nh"  # IDs and paths are not parted
    yield ".ad l"


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield from _list({record[0]: re.sub(r"  +", " ", record[1])})


def _list(entries: dict[str, str]) -> Iterator[str]:
    for term, meaning in entries.items():
        yield from (".TP", rf"\fB{_text(term)}\fR", _text(meaning))


def _prose(text: str) -> Iterator[str]:
    """Paragraphs; one that opens with a backspace, click's sign, stays as it is laid out."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(text))):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            yield from (".nf", *(_text(line) for line in paragraph.splitlines()[1:]), ".fi")
        else:
            yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """Escaped for roff: also a line that would open with a request."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("…", "...").replace("'", r"\(aq")
    return escaped if not escaped.startswith(".") else r"\&" + escaped
