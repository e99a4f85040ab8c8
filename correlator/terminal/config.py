"""The commands for the configuration's files: `config get`, `list`, `set`, and what an upgrade of the package runs."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import click

from correlator.config import loading, rendering, values
from correlator.config.editing import MOVED, Edited, known_key, move_keys, set_keys, unset_keys
from correlator.config.files import folder_of
from correlator.config.loading import Value
from correlator.doctor import service
from correlator.errors import ConfigError, CorrelatorError
from correlator.ops.logs import escape
from correlator.terminal.commands import Commands, output_option

_OF_GATEWAY = tuple(f"{section}." for section in rendering.GATEWAY)
_NOTHING = "The configuration would be wrong, so nothing was written. Set keys that need each other by one command."


def _files(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name the files."""
    file = click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"Configuration in TOML.  [default: {loading.DEFAULT_FILE}]",
    )
    gateway = click.option(
        "--gateway",
        is_flag=True,
        help=f"The configuration of a gateway; without --config that of {service.GATEWAY_FILE}.",
    )
    return file(gateway(command))


_output = output_option("text", "json", default="text")


@click.group(cls=Commands)
def config() -> None:
    """Show or change the configuration."""


@config.command("get")
@_files
@_output
@click.argument("key")
def get(file: Path | None, gateway: bool, output: str, key: str) -> None:
    """Print the value of a key, e.g. http.listen, and where it comes from.

    That is a file and its line, a variable of the environment, or the file of a secret. No secret is printed.
    """
    held, wrong = _listed(file, gateway=gateway)
    if key in wrong:
        raise ConfigError([wrong[key]])
    found = next((one for one in held if one.dotted == key), None)
    if found is None:
        known_key(key, gateway=gateway)
        found = Value(key, None, None)  # of a table that is not there
    click.echo(json.dumps(_document(found), indent=2) if output == "json" else _line(found))
    _warn(file, [found], gateway=gateway)


@config.command("list")
@_files
@_output
@click.option("--all", "everything", is_flag=True, help="Also the keys that have their default.")
def list_(file: Path | None, gateway: bool, output: str, everything: bool) -> None:
    """Print the keys that are set, with their values, and where each comes from. No secret is printed.

    The values need not be right together: check-config checks that.
    """
    held, wrong = _listed(file, gateway=gateway)
    shown = [one for one in held if everything or one.source is not None]
    if output == "json":
        click.echo(json.dumps([_document(one) for one in shown], indent=2))
    else:
        for one in shown:
            click.echo(_line(one))
    _warn(file, shown, gateway=gateway)
    if wrong:
        raise ConfigError([*wrong.values()])


@config.command("set")
@_files
@click.argument("given", metavar="KEY VALUE...", nargs=-1, required=True)
def set_(file: Path | None, gateway: bool, given: tuple[str, ...]) -> None:
    """Set keys, e.g. database.timezone Europe/Berlin.

    The value is TOML or a bare text; a list is also written a,b. It is written into the file that sets the key now,
    else into conf.d/50-local.toml (a gateway: gateway.d/50-local.toml). Nothing is written unless the whole
    configuration is right with it; keys that need each other are set by one command. It says whether a reload suffices.
    """
    if len(given) % 2:
        raise click.UsageError(f"a value is missing after {given[-1]}: expected KEY VALUE, and perhaps more of both")
    main = _main(file, gateway=gateway)
    pairs = list(zip(given[::2], given[1::2], strict=True))
    environ = {"HOME": "/", **service.environ_of(main, os.environ)}  # whether the daemon has a home is not known here
    try:
        edited = set_keys(main, pairs, environ, gateway=gateway, may_be_missing=file is None)
    except ConfigError as error:
        raise ConfigError([*error.problems, _NOTHING]) from error
    _print(main, edited)


@config.command("unset")
@_files
@click.argument("given", metavar="KEY...", nargs=-1, required=True)
def unset(file: Path | None, gateway: bool, given: tuple[str, ...]) -> None:
    """Remove keys, e.g. database.tls.ca, or a table, e.g. database.tls, from all files: the defaults apply again.

    A table that is left empty is removed with its last key. Nothing is written unless the whole configuration is right.
    """
    main = _main(file, gateway=gateway)
    environ = {"HOME": "/", **service.environ_of(main, os.environ)}
    try:
        edited = unset_keys(main, given, environ, gateway=gateway)
    except ConfigError as error:
        raise ConfigError([*error.problems, _NOTHING]) from error
    _print(main, edited)


def _print(main: Path, edited: Edited) -> None:
    for line in edited.twice:
        click.echo(f"warning: {line}", err=True)
    for line in _report(main, edited):
        click.echo(line)


@config.command("move", hidden=True)
def move() -> None:
    """Write the two files of the package anew. What is set in them moves to drop-ins."""
    problems: list[str] = []
    for file, text in (
        (loading.DEFAULT_FILE, rendering.reference()),
        (service.GATEWAY_FILE, rendering.gateway_reference()),
    ):
        try:
            kept = move_keys(file, text)
        except CorrelatorError as error:
            problems += [*str(error).splitlines(), f"{file} stays as it is"]
            continue
        if kept is not None:
            click.echo(f"{file}: what was set there is in {folder_of(file) / MOVED} now; {kept} is the file as it was")
    if problems:
        raise ConfigError(problems)


def _main(file: Path | None, *, gateway: bool) -> Path:
    return file or (service.GATEWAY_FILE if gateway else loading.DEFAULT_FILE)


def _listed(file: Path | None, *, gateway: bool) -> tuple[list[Value], dict[str, str]]:
    main = _main(file, gateway=gateway)
    existing = main if file or main.exists() or folder_of(main).exists() else None
    held, wrong = loading.listed(existing, service.environ_of(main, os.environ), gateway=gateway)
    return [one for one in held if not gateway or one.dotted.startswith(_OF_GATEWAY)], wrong


def _line(one: Value) -> str:
    return f"{one.dotted} = {values.toml(one.value)}  # {escape(one.source or 'default')}"


def _document(one: Value) -> dict[str, object]:
    return {"key": one.dotted, "value": rendering.plain(one.value), "from": one.source}


def _warn(file: Path | None, shown: Iterable[Value], *, gateway: bool) -> None:
    """Name what the unit sets, which the service uses in place of what this command has shown."""
    unit = service.unit_of(_main(file, gateway=gateway))
    of_unit = asyncio.run(service.variables_of(unit)) if unit is not None else set()
    for variable in sorted(of_unit & {loading.variable(one.dotted) for one in shown} - os.environ.keys()):
        click.echo(f"warning: {variable} of the unit wins over the files: systemctl cat {unit}", err=True)


def _report(main: Path, edited: Edited) -> list[str]:
    from correlator.daemon import needs_restart  # noqa: PLC0415 - other commands need no metrics

    lines = []
    unit = service.unit_of(main)
    of_unit = asyncio.run(service.variables_of(unit)) if unit is not None else set()
    for change in edited.changes:
        if change.value is not None:
            lines.append(f"{change.file}: {change.dotted} = {change.value}{', as before' if change.same else ''}")
        elif change.file is not None:
            lines.append(f"{change.file}: {change.dotted} is removed")
        else:
            lines.append(f"No file sets {change.dotted}.")
        variable = loading.variable(change.dotted)
        if variable in of_unit:
            lines.append(f"But {variable} of the unit wins over the files: remove it by systemctl edit {unit}")
        if variable in os.environ:
            lines.append(f"But {variable} of this environment wins over the files for commands that are run here.")
    if edited.after is None:
        lines.append(f"The gateway cannot start yet. {loading.NO_CLUSTER}")
    elif edited.before == edited.after:
        lines.append("The configuration in use does not change.")
    else:
        restart = edited.before is None or bool(needs_restart(edited.before, edited.after))
        lines.append(_next(unit, restart=restart))
    return lines


def _next(unit: str | None, *, restart: bool) -> str:
    """Return what applies the change."""
    if unit is None:
        return "A restart applies it." if restart else "A reload applies it: send SIGHUP to the process."
    return f"A {'restart' if restart else 'reload'} applies it: systemctl {'restart' if restart else 'reload'} {unit}"
