"""The commands that change the configuration's files: `config set`, and what an upgrade of the package runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from correlator.config import loading, rendering
from correlator.config.editing import MOVED, Edited, move_keys, set_keys
from correlator.config.files import folder_of
from correlator.doctor import service
from correlator.errors import ConfigError, CorrelatorError
from correlator.terminal.commands import Commands

_NOTHING = "The configuration would be wrong, so nothing was written. Set keys that need each other by one command."


@click.group(cls=Commands)
def config() -> None:
    """Change the configuration."""


@config.command("set")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Configuration in TOML.  [default: {loading.DEFAULT_FILE}]",
)
@click.option(
    "--gateway", is_flag=True, help=f"The configuration of a gateway; without --config that of {service.GATEWAY_FILE}."
)
@click.argument("given", metavar="KEY VALUE...", nargs=-1, required=True)
def set_(file: Path | None, gateway: bool, given: tuple[str, ...]) -> None:
    """Set keys, e.g. database.timezone Europe/Berlin.

    The value is TOML or a bare text; a list is also written a,b. It is written into the file that sets the key now,
    else into conf.d/50-local.toml (a gateway: gateway.d/50-local.toml). Nothing is written unless the whole
    configuration is right with it; keys that need each other are set by one command. It says whether a reload suffices.
    """
    if len(given) % 2:
        raise click.UsageError(f"a value is missing after {given[-1]}: expected KEY VALUE, and perhaps more of both")
    main = file or (service.GATEWAY_FILE if gateway else loading.DEFAULT_FILE)
    pairs = list(zip(given[::2], given[1::2], strict=True))
    environ = {"HOME": "/", **service.environ_of(main, os.environ)}  # whether the daemon has a home is not known here
    try:
        edited = set_keys(main, pairs, environ, gateway=gateway, may_be_missing=file is None)
    except ConfigError as error:
        raise ConfigError([*error.problems, _NOTHING]) from error
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


def _report(main: Path, edited: Edited) -> list[str]:
    from correlator.daemon.reload import needs_restart  # noqa: PLC0415 - other commands need no metrics

    lines = []
    unit = service.unit_of(main)
    of_unit = asyncio.run(service.variables_of(unit)) if unit is not None else set()
    for change in edited.changes:
        lines.append(f"{change.file}: {change.dotted} = {change.value}{', as before' if change.same else ''}")
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
