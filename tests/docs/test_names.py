"""Every name that a document mentions in backticks is one of the code: a file, a member, a metric, a key, an option."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache

import click
import pytest
from click.testing import CliRunner

from correlator.cli import main
from correlator.config.schema import leaves, repeated_tables
from correlator.ops import metrics
from correlator.sources.db.session import TABLES
from tests.support.markdown import backticks, documents, guides, read
from tests.support.paths import REPOSITORY

FOLDERS = ("", "correlator", "tests", "tests/acceptance/faults", "deploy")
MADE = ("build/", "lib/correlator/")
"""FOLDERS: where a file named in backticks may be, besides beside its document. MADE: of files that a command makes."""

SUFFIXES = (
    ".sig",
    *(".py", ".md", ".toml", ".sql", ".service", ".js", ".json", ".yml", ".yaml", ".conf", ".txt", ".gz", ".mjs"),
    *(".ts", ".svg", ".deb", ".sig"),
)
KEYS = {dotted for dotted, _ in (*leaves(), *repeated_tables())}
SECTIONS = {dotted.rpartition(".")[0] for dotted in KEYS}
JSON_OBJECTS = {
    "connection",
    "event",
    "failure",
    "forecast",
    "hello",
    "job",
    "last_message",
    "metadata",
    "note",
    "progress",
}
READINESS = {"cluster.error", "database.error", "database.judged_at", "database.loading", "mqtt.error", "mqtt.skipped"}
"""Objects of JSON whose members the documents name as `object.member`, and members of /health/ready."""

OF_OTHERS = {
    *("transport.write", "BinLogStream", "tool.importlinter", "ssl.SSLContext"),  # Python and libraries
    *(
        "binlog_expire_logs_seconds",
        "binlog_ignore_db",
        "innodb_flush_log_at_trx_commit",
        "log_bin_compress",
    ),  # MariaDB
    *("log_slave_updates", "max_binlog_total_size", "slave_connections_needed_for_purge", "sql_log_bin"),
    *("sync_binlog", "auto_increment"),
    "resolve_timeout",  # Alertmanager
    *("section.key", "HELP", "useJobs"),  # placeholders, and names of examples
}
"""Names that belong to other programs or to an example."""

_DOTTED = re.compile(r"(?<![\w./:@$\"'-])(?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*(?![\w./:-])")
_WORD = re.compile(r"(?<![\w%$.])[A-Za-z_]\w*(?![\w*])")
_OF_CODE = re.compile(r"[A-Za-z]_[A-Za-z]|[a-z][A-Z]|^[A-Z]{4,}$")
CODE = ("correlator", "tests", "deploy", "benchmarks")


@cache
def members() -> dict[str, set[str]]:
    """What the classes and modules of the program and of its tests hold, by their names: methods, fields, functions."""
    found: dict[str, set[str]] = {}
    for file in (file for folder in ("correlator", "tests") for file in (REPOSITORY / folder).rglob("*.py")):
        tree = ast.parse(file.read_text())
        found.setdefault(file.parent.name if file.stem == "__init__" else file.stem, set()).update(_members(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                attributes = {
                    part.attr
                    for part in ast.walk(node)
                    if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self"
                }
                found.setdefault(node.name, set()).update(_members(node), attributes)
    return found


def _members(node: ast.Module | ast.ClassDef) -> Iterator[str]:
    for part in node.body:
        match part:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case _:
                pass


@cache
def code(*folders: str) -> str:
    """The text of every file of code below these folders."""
    kinds = {".py", ".js", ".ts", ".sql", ".service", ".toml", ".yml", ".conf", ".json", ""}
    files = [file for folder in folders for file in (REPOSITORY / folder).rglob("*") if file.suffix in kinds]
    return "\n".join(file.read_text() for file in files if file.is_file() and "vendor" not in file.parts)


@cache
def identifiers() -> set[str]:
    """Every name in the code, the names of modules, metrics and environment variables, and those of others."""
    importlib.import_module("correlator.ops.cluster_metrics")  # a daemon without a cluster does not have them
    families = list(metrics.REGISTRY.collect())
    series = {f"{family.name}{end}" for family in families for end in ("", "_total", "_count", "_sum", "_bucket")}
    variables = {f"CORRELATOR_{dotted.upper().replace('.', '__')}" for dotted in KEYS}
    text = "\n".join([code(*CODE), *map(read, ("Makefile", "pyproject.toml", ".ci/run"))])
    return {*re.findall(r"\w+", text), *series, *variables, *members(), *OF_OTHERS}


@cache
def dotted_names() -> set[str]:
    """Every name `owner.member` of the code: of classes and modules, keys, columns and members of JSON."""
    found = {f"{owner}.{member}" for owner, known in members().items() for member in known}
    found |= {f"{table}.{column}" for table, columns in TABLES.items() for column in columns}
    words = set(re.findall(r"\w+", code("correlator")))
    found |= {f"{owner}.{member}" for owner in JSON_OBJECTS for member in words}
    return found | KEYS | SECTIONS | READINESS | OF_OTHERS


def is_there(dotted: str) -> bool:
    """True if the code has this name, as an attribute or as a text in quotes (the name of a check)."""
    owner, member = dotted.split(".")[-2:]
    return f"{owner}.{member}" in dotted_names() or dotted in KEYS or f'"{dotted}"' in code("correlator")


@pytest.mark.parametrize("document", documents())
def test_every_file_that_is_named_is_there(document):
    modules = {file.name for folder in CODE for file in (REPOSITORY / folder).rglob("*.py")}
    wrong = []
    for line, text in backticks(document):
        if re.fullmatch(r"\w+\.py", text) and text not in modules:
            wrong.append(f"{line.place}: no module is {text}")
        path, _, name = text.partition("::")
        if (
            path.startswith(MADE)
            or not path.endswith((*SUFFIXES, "/"))
            or not re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", path)
        ):
            continue
        files = [REPOSITORY / folder / path for folder in FOLDERS] + [(REPOSITORY / document).parent / path]
        file = next((file for file in files if file.exists()), None)
        if file is None:
            wrong.append(f"{line.place}: {path} is not there")
        elif name and not re.search(rf"^(?:async )?def {re.escape(name)}\(", file.read_text(), re.MULTILINE):
            wrong.append(f"{line.place}: {path} has no {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", documents())
def test_every_dotted_name_is_a_member_a_key_or_a_column(document):
    named = [(line.place, name) for line, text in backticks(document) for name in _DOTTED.findall(text)]
    wrong = [f"{place}: {name}" for place, name in named if not name.endswith(SUFFIXES) and not is_there(name)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", documents())
def test_every_name_that_only_code_has_is_in_the_code(document):
    named = [(line.place, name) for line, text in backticks(document) for name in _WORD.findall(text)]
    wrong = [f"{place}: {name}" for place, name in named if _OF_CODE.search(name) and name not in identifiers()]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", guides())
def test_every_correlator_command_in_prose_exists_with_these_options(document):
    for line, text in backticks(document):
        if not text.startswith("correlator ") or re.search(r"[{}…=]", text):
            continue
        arguments = re.sub(r" #.*", "", text).split()[1:]
        if arguments == ["--version"]:
            continue
        ended = CliRunner().invoke(main, [*arguments, "--help"], prog_name="correlator")
        assert ended.exit_code == 0, f"{line.place}: {text}\n{ended.output}"


@pytest.mark.parametrize("document", documents())
def test_every_option_named_alone_exists(document):
    options = {name for command in commands(main) for option in command.params for name in option.opts}
    for line, text in backticks(document):
        if text.startswith("--correlator-"):
            assert f"var({text}," in read("correlator/web/progress.js"), f"{line.place}: {text}"
        elif text.startswith("--"):
            assert text.split("=")[0].split()[0] in options | {"--help", "--version"}, f"{line.place}: {text}"


def commands(command: click.Command) -> Iterator[click.Command]:
    """A command with all its subcommands."""
    yield command
    if isinstance(command, click.Group):
        for each in command.commands.values():
            yield from commands(each)


@pytest.mark.parametrize("document", documents())
def test_every_target_of_make_in_a_line_of_text_is_one(document):
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for line, text in backticks(document):
        if text.startswith("make "):
            assert text.split()[1] in targets, f"{line.place}: {text}"


@pytest.mark.parametrize(
    "name", ["Hub.no_such", "jobs.no_such", "no_such.key", "log_events.no_such", "metadata.no_such_"]
)
def test_a_dotted_name_that_is_not_in_the_code_is_found(name):
    assert _DOTTED.findall(name) == [name]
    assert not is_there(name)


def test_no_name_of_others_is_listed_in_vain():
    mentioned = {name for document in documents() for _, text in backticks(document) for name in _names(text)}
    assert mentioned >= OF_OTHERS


def _names(text: str) -> list[str]:
    return [*_DOTTED.findall(text), *_WORD.findall(text)]
