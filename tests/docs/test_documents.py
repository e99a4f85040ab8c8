"""What the documents say is so: links lead somewhere, files and names are there, every block is what it says it is."""

from __future__ import annotations

import ast
import configparser
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

from correlator import config
from correlator.cli import main
from correlator.demo.run import announce
from correlator.demo.traffic import Traffic
from correlator.settings import leaves
from tests.docs import reference
from tests.docs.documents import REPOSITORY, Block, anchors, backticks, blocks, documents, guides, links, read
from tests.servers import _program

COVERED = {
    "": "drawings and messages, which nobody types",
    "sh": "test_commands.py",
    "sql": "test_commands.py",
    "nginx": "tests/integration/test_deploy.py, as it is delivered; tests/acceptance/test_proxies.py, as it works",
    "caddy": "tests/integration/test_deploy.py, as it is delivered; tests/acceptance/test_proxies.py, as it works",
}
"""Languages whose blocks are held by another test, or by none, as they say nothing that could be held."""

KEYS = {dotted for dotted, _ in leaves()}
TYPES = read("correlator/web/client.d.ts")

FOLDERS = ("", "correlator", "tests", "tests/acceptance/faults")
"""Where a file named in backticks may be, besides beside its document: guarantees.md says what it leaves out."""

SUFFIXES = (".py", ".md", ".toml", ".sql", ".service", ".js", ".json", ".yml", ".yaml", ".conf", ".txt", ".gz", ".mjs")


def held(language: str) -> list[Any]:
    found = [block for name in guides() for block in blocks(name) if block.language == language]
    return [pytest.param(block, id=block.place) for block in found]


@pytest.mark.parametrize("document", documents())
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(document):
    folder = (REPOSITORY / document).parent
    wrong = []
    for line, target in links(document):
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else REPOSITORY / document
        if not file.exists():
            wrong.append(f"{line.place}: {target} is not there")
        elif anchor and anchor not in anchors(str(file.relative_to(REPOSITORY))):
            wrong.append(f"{line.place}: {target} has no such heading")
    assert not wrong, "\n".join(wrong)


def test_every_document_can_be_reached_from_the_readme():
    reached, new = set[str](), {"README.md"}
    while new:
        reached |= new
        new = {
            str(file.relative_to(REPOSITORY))
            for document in new
            for _, target in links(document)
            if (file := (REPOSITORY / document).parent.joinpath(target.partition("#")[0]).resolve()).suffix == ".md"
        } - reached
    assert {name for name in documents() if name.startswith("docs/") and "/decisions/" not in name} <= reached


def test_the_index_has_every_document():
    told = {target.partition("#")[0] for _, target in links("docs/README.md")}
    assert {file.name for file in (REPOSITORY / "docs").glob("*.md")} - {"README.md"} <= told


# Names


@cache
def members(folder: str) -> dict[str, set[str]]:
    """What classes and modules below a folder hold, by their names: methods, fields, functions."""
    found: dict[str, set[str]] = {}
    for file in (REPOSITORY / folder).rglob("*.py"):
        tree = ast.parse(file.read_text())
        found.setdefault(file.stem, set()).update(_members(tree))
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


@pytest.mark.parametrize("document", guides())
def test_every_file_that_is_named_is_there(document):
    wrong = []
    for line, text in backticks(document):
        path, _, name = text.partition("::")
        if not path.endswith((*SUFFIXES, "/")) or not (name or re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", path)):
            continue
        files = [REPOSITORY / folder / path for folder in FOLDERS] + [(REPOSITORY / document).parent / path]
        file = next((file for file in files if file.exists()), None)
        if file is None:
            if name or path.split("/")[0] in {"correlator", "tests", "deploy", "docs", "benchmarks", "requirements"}:
                wrong.append(f"{line.place}: {path} is not there")
        elif name and not re.search(rf"^(?:async )?def {re.escape(name)}\(", file.read_text(), re.MULTILINE):
            wrong.append(f"{line.place}: {path} has no {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", guides())
def test_every_file_of_tests_that_is_named_is_there(document):
    there = {file.name for file in (REPOSITORY / "tests").rglob("*.py")}
    named = {(line.place, text) for line, text in backticks(document) if re.fullmatch(r"test_\w+\.py", text)}
    assert not {(place, text) for place, text in named if text not in there}


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md", "docs/joblog.md"])
def test_every_member_of_a_class_or_module_that_is_named_is_there(document):
    wrong, known = [], members("correlator") | members("tests")
    for line, text in backticks(document):
        called = re.fullmatch(r"(?:\w+\.)*(?P<owner>\w+)\.(?P<member>\w+)(?:\(\))?", text)
        if called is None or text in KEYS or f".{called['member']}" in SUFFIXES or called["owner"] not in known:
            continue
        if called["member"] not in known[called["owner"]]:
            wrong.append(f"{line.place}: {text}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", guides())
def test_every_command_of_ours_in_a_line_of_text_is_one_with_these_options(document):
    for line, text in backticks(document):
        if not text.startswith("correlator ") or re.search(r"[{}…=]", text):
            continue
        arguments = re.sub(r" #.*", "", text).split()[1:]
        if arguments == ["--version"]:
            continue
        ended = CliRunner().invoke(main, [*arguments, "--help"], prog_name="correlator")
        assert ended.exit_code == 0, f"{line.place}: {text}\n{ended.output}"


@pytest.mark.parametrize("document", guides())
def test_every_target_of_make_in_a_line_of_text_is_one(document):
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for line, text in backticks(document):
        if text.startswith("make "):
            assert text.split()[1] in targets, f"{line.place}: {text}"


def test_the_readme_shows_what_the_demo_prints(monkeypatch, capsys):
    shown = next(block.text for block in blocks("README.md") if block.text.startswith("http://"))
    (job,) = set(re.findall(r"unified-live-failover-\w+-\d+", shown))

    class Told:
        def running_id(self) -> str:
            return str(job)

    monkeypatch.setattr("sys.argv", [".venv/bin/correlator", "demo"])
    announce(cast("Traffic", Told()), [], "http://127.0.0.1:8686")
    assert capsys.readouterr().out.startswith(shown)


# Blocks


def test_every_block_has_a_language_that_a_test_looks_at():
    looked_at = COVERED.keys() | {"toml", "json", "ini", "js", "html", "ts", "tsx", "python"}
    unknown = [b.place for name in guides() for b in blocks(name) if b.language not in looked_at]
    assert not unknown, unknown


@pytest.mark.parametrize("block", held("toml"))
def test_a_configuration_that_is_shown_is_right(block: Block, tmp_path: Path):
    for name in ("db-password", "mqtt-password", "api-token", "tls.crt", "tls.key", "ca.pem"):
        (tmp_path / name).write_text("secret")
    shown = re.sub(r'"/etc/correlator/([^"]*)"', rf'"{tmp_path}/\1"', block.text)
    file = tmp_path / "shown.toml"
    file.write_text(shown)
    config.load(file, {"HOME": str(tmp_path)})


def test_the_contract_shows_the_defaults(tmp_path: Path):
    (block,) = (block for block in blocks("docs/protocol.md") if block.language == "toml")
    file = tmp_path / "shown.toml"
    file.write_text(block.text)
    environ = {"HOME": "/root"}
    assert config.load(file, environ) == config.load(None, environ)


@pytest.mark.parametrize("block", [*held("json"), *held("ini"), *held("python")])
def test_what_is_shown_can_be_read(block: Block):
    match block.language:
        case "json":
            json.loads(block.text)
        case "ini":
            configparser.ConfigParser(allow_no_value=True).read_string(f"[shown]\n{block.text}")
        case _:
            ast.parse(block.text, filename=block.place)


@pytest.mark.parametrize("block", [*held("js"), *held("html")])
def test_a_script_that_is_shown_can_be_read(block: Block, tmp_path: Path):
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", block.text, re.DOTALL)
    for number, script in enumerate([block.text] if block.language == "js" else scripts):
        file = tmp_path / f"{number}.mjs"
        file.write_text(script)
        ended = subprocess.run(
            [_program("node"), "--check", file], capture_output=True, text=True, timeout=20, check=False
        )
        assert ended.returncode == 0, f"{block.place}\n{ended.stderr}"


@pytest.mark.parametrize("block", [*held("ts"), *held("tsx"), *held("js"), *held("html")])
def test_what_is_imported_from_the_client_is_there(block: Block):
    exported = set(
        re.findall(r"^export (?:declare )?(?:class|function|interface|type|const) (\w+)", TYPES, re.MULTILINE)
    )
    assert {"Correlator", "subscribe"} <= exported
    for names, _ in re.findall(r"import \{([^}]*)\} from \"([^\"]*/client\.js)\"", block.text):
        assert {name.replace("type ", "").strip() for name in names.split(",")} <= exported, block.place


# The reference of the configuration


def test_the_reference_is_that_of_the_types():
    page = read("docs/configuration.md")
    assert page == reference.written(page, reference.reference()), "say make docs"


def test_the_reference_has_every_key_once():
    page = read("docs/configuration.md")
    names = [f"CORRELATOR_{dotted.upper().replace('.', '__')}" for dotted in KEYS]
    assert all(page.count(f"`{name}`") == 1 for name in names)


@pytest.mark.parametrize("page", ["", reference.BEGIN, reference.END])
def test_a_page_without_its_marks_is_refused(page):
    with pytest.raises(ValueError, match="expected"):
        reference.written(page, "")
