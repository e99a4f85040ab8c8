"""What the documents say is so: links lead somewhere, files and names are there, every block is what it says it is."""

from __future__ import annotations

import ast
import base64
import configparser
import json
import re
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

from correlator.config import loading
from correlator.config.schema import leaves
from correlator.demo.run import announce
from correlator.demo.traffic import Traffic
from correlator.model.document import (
    Comparison,
    Failure,
    Forecast,
    ForecastEnd,
    JobDocument,
    LastMessage,
    Progress,
    Step,
    StepAhead,
)
from correlator.sinks.streaming.limits import DEFAULT
from correlator.sinks.turns import NEWCOMERS, Work
from correlator.sinks.webhooks import webhook_headers
from deploy.debian import build
from tests.docs import document_types, reference
from tests.support import promises
from tests.support.markdown import Block, Line, anchors, blocks, documents, guides, links, prose, read
from tests.support.paths import REPOSITORY
from tests.support.servers import program

COVERED = {
    "": "drawings and messages, which nobody types",
    "sh": "test_commands.py",
    "sql": "test_commands.py",
    "caddy": "tests/integration/test_deploy.py, as it is delivered; tests/acceptance/test_proxies.py, as it works",
}
"""Languages whose blocks are held by another test, or by none, as they say nothing that could be held."""

KEYS = {dotted for dotted, _ in leaves()}
TYPES = read("correlator/web/client.d.ts")


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


def test_every_link_of_an_installed_document_leads_to_a_file_that_is_installed(tmp_path: Path):
    build.documents(tmp_path)
    (tmp_path / "copyright").touch()
    for file in tmp_path.rglob("*.md"):
        for line, target in links(str(file)):
            assert (file.parent / target.partition("#")[0]).exists(), f"{line.place}: {target}"


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
    listed = {target.partition("#")[0] for _, target in links("docs/README.md")}
    assert {file.name for file in (REPOSITORY / "docs").glob("*.md")} - {"README.md"} <= listed


def test_the_readme_says_how_much_make_downloads_and_how_long_it_takes():
    sizes = re.findall(r"(\d+ MB) are downloaded", read("Makefile"))
    assert len(sizes) == 2
    (paragraph,) = (one for one in read("README.md").split("\n\n") if "The first `make demo`" in one)
    assert set(sizes) <= set(re.findall(r"\d+ MB", paragraph))
    assert "within a minute" in paragraph
    assert re.search(r"the tests take about \w+ minutes", paragraph)


def test_the_readme_shows_what_the_demo_prints(monkeypatch, capsys):
    shown = next(block.text for block in blocks("README.md") if block.text.startswith("http://"))
    (job,) = set(re.findall(r"unified-live-failover-\w+-\d+", shown))
    (file,) = set(re.findall(r"--config (\S+)", shown))

    class Recipients:
        def running_id(self) -> str:
            return str(job)

    monkeypatch.setattr("sys.argv", [".venv/bin/correlator", "demo"])
    announce(cast("Traffic", Recipients()), Path(str(file)), [], "http://127.0.0.1:8686")
    assert capsys.readouterr().out.startswith(shown)


# Blocks


def test_every_block_has_a_language_that_a_test_checks():
    checked = COVERED.keys() | {"toml", "json", "ini", "js", "html", "ts", "tsx", "python"}
    unknown = [b.place for name in guides() for b in blocks(name) if b.language not in checked]
    assert not unknown, unknown


@pytest.mark.parametrize("block", held("toml"))
def test_a_configuration_that_is_shown_is_right(block: Block, tmp_path: Path):
    for name in ("db-password", "mqtt-password", "api-token", "otlp-headers", "tls.crt", "tls.key", "ca.pem"):
        (tmp_path / name).write_text("Authorization: secret" if name == "otlp-headers" else "secret-of-the-service")
    (tmp_path / "webhook-operations-secret").write_text("whsec_" + "a" * 32)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for name in ("gui", "prometheus"):
        (credentials / f"api-token-{name}").write_text(f"a-token-of-{name}-itself")
    (credentials / "webhook-chat-url").write_text("https://chat.example/x")
    shown = re.sub(r'"/etc/correlator/([^"]*)"', rf'"{tmp_path}/\1"', block.text)
    file = tmp_path / "shown.toml"
    file.write_text(shown)
    loading.load(file, {"HOME": str(tmp_path), "CREDENTIALS_DIRECTORY": str(credentials)})


@pytest.mark.parametrize("document", [name for name in guides() if name.startswith("docs/")])
def test_no_paragraph_has_more_than_80_words(document: str):
    text = "\n".join(line.text for line in prose(document))
    paragraphs = re.split(r"\n\n|\n *(?=- |\||\d+\. )| \| ", text)
    assert not [one for one in paragraphs if len(one.split()) > 80]


@pytest.mark.parametrize("document", ["docs/webhooks.md", "docs/traces.md"])
def test_a_file_of_a_secret_is_a_key_only_without_systemd(document: str):
    """The service's account cannot read what only root can: with such a key it ends with 78."""
    text = " ".join(line.text for line in prose(document))
    named = [sentence for sentence in re.split(r"(?<=[.:])\s| \| ", text) if re.search(r"`\w+_file`", sentence)]
    assert named
    assert not [sentence for sentence in named if "Without systemd" not in sentence]
    shown = [
        b.place for b in blocks(document) if b.language == "toml" and re.search(r"^\w+_file\s*=", b.text, re.MULTILINE)
    ]
    assert not shown


def test_the_function_of_the_guide_recognises_a_signature_of_the_daemon():
    (block,) = (block for block in blocks("docs/webhooks.md") if block.language == "python")
    shown: dict[str, Any] = {}
    exec(block.text, shown)
    old, new = b"o" * 32, b"n" * 32
    headers = webhook_headers([new, old], "evt_1", int(time.time()), b"{}")
    for key, body, genuine in ((old, b"{}", True), (new, b"{}", True), (new, b"{ }", False), (b"x" * 32, b"{}", False)):
        assert shown["is_genuine"](f"whsec_{base64.b64encode(key).decode()}", headers, body) is genuine
    old_headers = webhook_headers([new], "evt_1", int(time.time()) - 900, b"{}")
    assert not shown["is_genuine"](f"whsec_{base64.b64encode(new).decode()}", old_headers, b"{}")


@pytest.mark.parametrize("block", [*held("json"), *held("ini"), *held("python")])
def test_what_is_shown_can_be_read(block: Block):
    match block.language:
        case "json":
            json.loads(block.text)
        case "ini":
            configparser.ConfigParser(allow_no_value=True, strict=False).read_string(f"[shown]\n{block.text}")
        case _:
            ast.parse(block.text, filename=block.place)


@pytest.mark.parametrize("block", [*held("js"), *held("html")])
def test_a_script_that_is_shown_can_be_read(block: Block, tmp_path: Path):
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", block.text, re.DOTALL)
    for number, script in enumerate([block.text] if block.language == "js" else scripts):
        file = tmp_path / f"{number}.mjs"
        file.write_text(script)
        ended = subprocess.run(
            [program("node"), "--check", file], capture_output=True, text=True, timeout=20, check=False
        )
        assert ended.returncode == 0, f"{block.place}\n{ended.stderr}"


def test_behind_next_the_page_keeps_the_slash_that_its_files_are_found_by(tmp_path: Path):
    """Next.js answers /correlator/ with a redirect to /correlator, where relative names lead beside the prefix."""
    (shown,) = (block.text for block in blocks("docs/gui.md") if "next.config.mjs" in block.text)
    (tmp_path / "next.config.mjs").write_text(shown)
    ask = "import c from './next.config.mjs';"
    ask += " console.log(JSON.stringify([c.skipTrailingSlashRedirect, await c.rewrites()]));"
    ended = subprocess.run(
        [program("node"), "--input-type=module", "--eval", ask],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    slash, (rule,) = json.loads(ended.stdout)
    assert slash is True
    assert rule == {"source": "/correlator/:path*", "destination": "http://127.0.0.1:8686/:path*"}


def test_what_the_guide_shows_of_an_example_is_that_of_its_file():
    text = read("docs/examples/nextjs/next.config.mjs")
    assert any(text in block.text for block in blocks("docs/gui.md"))


@pytest.mark.parametrize("block", [*held("ts"), *held("tsx"), *held("js"), *held("html")])
def test_what_is_imported_from_the_client_is_there(block: Block):
    exported = set(
        re.findall(r"^export (?:declare )?(?:class|function|interface|type|const) (\w+)", TYPES, re.MULTILINE)
    )
    assert {"Correlator", "subscribe"} <= exported
    for names, _ in re.findall(r"import \{([^}]*)\} from \"([^\"]*/client\.js)\"", block.text):
        assert {name.replace("type ", "").strip() for name in names.split(",")} <= exported, block.place


def test_the_protocol_has_every_member_of_a_job_document():
    chapter = read("docs/protocol.md").partition("## The job document")[2].partition("\n## ")[0]
    named = {*re.findall(r'[`"]([a-z_0-9]+)[`"]', chapter)}
    kinds = (JobDocument, Progress, Forecast, ForecastEnd, StepAhead, Comparison, Failure, Step, LastMessage)
    assert {member for kind in kinds for member in kind.__struct_fields__} - named == set()


def test_the_types_of_both_clients_are_those_of_the_document():
    of, job = document_types, read("correlator/client/messages.py")
    assert reference.written(TYPES, of.declarations(), of.BEGIN, of.END) == TYPES, "say make docs"
    assert reference.written(job, of.python_declarations(), of.PYTHON_BEGIN, of.PYTHON_END) == job, "say make docs"


# The promises


def test_every_promise_has_a_test_that_is_collected_and_every_test_file_has_a_promise():
    found = promises.promises()
    assert min(Counter(each.place.partition(":")[0] for each in found).values()) > 40
    assert not [each.place for each in found if not all(each.cells)]
    assert not promises.untested(found)
    assert not promises.without_promise(found), "say in docs/guarantees.md what they hold"


PLANTED = """\
| threat | protection | tests |
|---|---|---|
| **A heading** | | |
| first | – | `unit/test_gaps.py`, `unit/test_gaps*.py` |
| second | – | |
| third | – | `unit/test_gaps.py::test_no_such`, `unit/no_such/`, `support/promises.py` |

| what | bound |
|---|---|
| a table | that names no tests |
"""


def test_a_promise_without_a_test_is_found_and_so_is_a_test_file_without_a_promise():
    lines = [Line("planted", number, text) for number, text in enumerate(PLANTED.splitlines(), 1)]
    found = [*promises.read(lines)]
    assert promises.untested(found) == [
        "planted:5: no test: second",
        *(f"planted:6: not collected: {test}" for test in found[2].tests),
    ]
    named = {"unit/test_gaps.py", "unit/test_gaps_machine.py"}
    assert set(promises.without_promise(found)) == promises.collected().keys() - named


def bounds(heading: str) -> list[list[str]]:
    """The rows of the table below a heading of docs/guarantees.md, as cells."""
    table = read("docs/guarantees.md").partition(f"# {heading}\n")[2].partition("\n#")[0]
    return [row.strip("| ").split(" | ") for row in table.splitlines() if row.startswith("| ")][1:]


@pytest.mark.parametrize(
    ("heading", "columns"), [("Promises", 3), ("What the parts do", 3), ("Of clients", 5), ("Of everything else", 3)]
)
def test_every_row_of_the_guarantees_is_whole(heading, columns):
    rows = bounds(heading)
    assert len(rows) > 15
    assert not [row for row in rows if len(row) != columns or not all(row)]


def test_the_keys_of_bounds_of_clients_are_those_of_the_configuration():
    named = {name for row in bounds("Of clients") for name in re.findall(r"`(http\.\w+)`", " ".join(row))}
    assert named <= KEYS
    assert {key for key in KEYS if key.startswith("http.max_")} <= named


def test_the_bounds_of_clients_are_those_of_the_classes_of_work():
    work = Work()
    begin, lists, queries, held, downloads = work.begin, work.lists, work.queries, work.held, work.downloads
    said = {
        "connections that begin": ("", f"{work.connections.at_once} at once"),
        "requests that begin": (f"{begin.most_each:,} wait", f"{begin.at_once} in one round"),
        "lists": (f"{lists.most_each:,} wait", f"{lists.most:,} wait, {lists.within:g} s"),
        "requests that ask": (f"{queries.each} at once; {queries.most_each:,} wait", f"{queries.at_once} at once"),
        "requests that wait for": (f"{held.each:,}", f"{held.most:,}"),
        "replies that need no token": (f"{work.open_replies.each >> 20} MiB", f"{work.open_replies.most >> 20} MiB"),
        "replies over": (f"{work.replies.each >> 20} MiB", f"{work.replies.most >> 20} MiB"),
        "websockets without": ("", f"{NEWCOMERS:,}, for {DEFAULT.hello_within:g} s"),
        "logs that": (f"{downloads.each} at once", f"{downloads.most} at once"),
        "messages of a websocket": ("", f"{work.messages.at_once} in one round"),
        "one step of a snapshot": ("", f"{work.parts.within:g} s for a turn"),
    }
    for beginning, (of_address, of_all) in said.items():
        (row,) = (row for row in bounds("Of clients") if row[0].startswith(beginning))
        assert of_address in row[1]
        assert of_all in row[2]


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


def test_the_page_of_what_the_tests_share_names_each_module_and_folder_once():
    named = Counter(re.findall(r"^\| `([^`]+)` \|", read("tests/support/README.md"), re.MULTILINE))
    folder = REPOSITORY / "tests/support"
    present = {str(file.relative_to(folder)) for suffix in ("py", "mjs") for file in folder.rglob(f"*.{suffix}")}
    assert named == Counter([*present, "react/"])
