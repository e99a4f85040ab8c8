"""The files that a browser may load: which, what they need, and how several modules become one."""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from correlator.web import files, joined, shortened
from tests.support.servers import program

ROOT = Path(str(resources.files("correlator.web")))
SERVED = {re.sub(r"-[0-9a-f]{20}\.", ".", path): file for path, file in files().items()}
SCRIPTS = sorted(path for path in SERVED if path.endswith(".js"))
SOURCES = sorted(path for path in ROOT.rglob("*") if path.suffix in (".js", ".css", ".html", ".svg"))


def test_two_files_make_the_page_and_the_others_are_for_guis_and_no_licence_is_served():
    assert sorted(SERVED) == [
        "/",
        "/client.d.ts",
        "/client.js",
        "/favicon.svg",
        "/page.js",
        "/progress.d.ts",
        "/progress.js",
        "/react.d.ts",
        "/react.js",
    ]
    page = SERVED["/"].body.decode()
    assert ["/" + name for name in re.findall(r'(?:src|href)="((?!api)[^"]+)"', page)] == [
        "/favicon.svg",
        *(path for path, file in files().items() if file.is_hashed),
    ]


def test_an_address_with_a_hash_belongs_to_one_content_whatever_serves_the_page():
    hashed = {path: file.body for path, file in files(gateway=True).items() if file.is_hashed}
    assert hashed == {path: file.body for path, file in files().items() if file.is_hashed}
    for path, body in hashed.items():
        assert path.rpartition("-")[2].startswith(hashlib.sha256(body).hexdigest()[:20])


def test_the_compressed_files_are_the_files_and_the_page_takes_less_than_70_kb():
    assert all(gzip.decompress(file.compressed) == file.body for file in SERVED.values())
    assert sum(len(SERVED[path].compressed) for path in ("/", "/page.js")) < 70_000


@pytest.mark.parametrize(
    ("path", "imported"),
    [
        ("/client.js", set()),
        ("/page.js", set()),
        ("/progress.js", {"./client.js"}),
        ("/react.js", {"react", "./client.js"}),
    ],
)
def test_a_served_script_imports_none_but(path, imported):
    assert (
        set(re.findall(r'^(?:import|export)\b[^;]* from "([^"]+)"', SERVED[path].body.decode(), re.MULTILINE))
        == imported
    )


@pytest.mark.parametrize("path", SCRIPTS)
def test_a_served_script_is_a_module_for_node_too(path, tmp_path):
    script = tmp_path / "script.mjs"
    script.write_bytes(SERVED[path].body)
    done = subprocess.run([program("node"), "--check", script], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_directive_stays_the_first_statement_of_a_joined_module():
    assert SERVED["/react.js"].body.startswith(b'"use client";\n')


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parent.name != "vendor"], ids=lambda path: path.name)
def test_no_file_needs_what_the_content_security_policy_forbids_or_another_host(path):
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|javascript:", text
    )
    assert not re.search(r"https?://", text)
    if path.suffix == ".html":
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", text)


def test_vendored_files_are_as_they_were_released_and_the_script_names_them():
    listing = (ROOT / "vendor/VENDOR.md").read_text()
    listed = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", listing, re.MULTILINE)}
    assert listed.keys() == {path.name for path in ROOT.glob("vendor/*.js")}
    for name, digest in listed.items():
        assert hashlib.sha256((ROOT / "vendor" / name).read_bytes()).hexdigest() == digest
    named = re.findall(r"^\| `\S+` \| \[(\w+)\].* \| (\S+) \| (\S+), `LICENSE", listing, re.MULTILINE)
    assert len(named) == len(listed)
    for name, version, licence in named:
        assert f"{name} {version} ({licence})".encode() in SERVED["/page.js"].body


MODULES = {
    "main.js": """
"use strict";
import { list, late as afterwards } from "./parts/a.js";
import word from "./parts/b.js";
export const shown = [list(), afterwards, word(), import.meta.url];
export { other } from "./parts/c.js";
""",
    "parts/a.js": """
import { seen } from "./c.js";
import { count } from "../beside.js";
const other = "a";
seen.push("a");
const later = () => other;
export async function* never() {}
export function list() {
  return [other, new Inner().name, count];
}
export class Inner {
  name = "inner";
}
export { seen, later as late };
""",
    "parts/b.js": 'const other="b";export default function(){return other}\n',
    "parts/c.js": """
export const seen = [];
export const other = import.meta.url;
""",
    "beside.js": "export const count = 1;\n",
}


def test_joined_modules_keep_their_scopes_their_order_and_their_addresses(tmp_path):
    (tmp_path / "joined.mjs").write_text(joined("main.js", ["beside.js"], read=MODULES.__getitem__))
    (tmp_path / "beside.js").write_text(MODULES["beside.js"])
    (tmp_path / "package.json").write_text('{"type": "module"}')
    script = """
        const { shown: [list, later, word, own], other } = await import("./joined.mjs?v=1/2");
        const base = new URL(".", import.meta.url).href;
        console.log(JSON.stringify([list, later(), word, own.replace(base, ""), other.replace(base, "")]));
    """
    (tmp_path / "script.mjs").write_text(script)
    done = subprocess.run(
        [program("node"), "script.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.stderr == ""
    assert done.stdout.strip() == '[["a","inner",1],"a","b","main.js","parts/c.js"]'


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parts/c.js": "export const seen = [];"}, "main.js imports other, which parts/c.js does not export"),
        ({"beside.js": ""}, "parts/a.js imports count, which beside.js does not export"),
        (
            {"parts/c.js": 'import { list } from "./a.js";\n'},
            "modules import each other: parts/a.js, parts/c.js, parts/a.js",
        ),
        (
            {"parts/b.js": "export let word = 1;\n"},
            "parts/b.js has a form that is not known here: export let word = 1;",
        ),
        ({"parts/c.js": 'import "./b.js";\n'}, "has a form that is not known here"),
        ({"parts/c.js": 'import * as b from "./b.js";\n'}, "has a form that is not known here"),
        ({"parts/c.js": 'export * from "./b.js";\n'}, "has a form that is not known here"),
    ],
)
def test_modules_that_cannot_be_joined_are_refused(changed, message):
    modules = MODULES | changed
    with pytest.raises(ValueError, match=re.escape(message)):
        joined("main.js", ["beside.js"], read=modules.__getitem__)


def test_only_indentation_and_comments_on_lines_of_their_own_are_left_out():
    kept = "/*! Licence */\ncall(); // why\n/** @type {A} */ const a = `b`;\n\nif (a) {\nb();  c();\n}\n"
    left_out = "// one\n  /* two\n   * // three */\n\t/**/\n"
    assert shortened(left_out + kept.replace("b();", "  \tb();") + left_out) == kept


@pytest.mark.parametrize("path", sorted(ROOT.glob("page/*.js")), ids=lambda path: path.name)
def test_no_line_of_a_template_begins_as_a_comment_does(path):
    begun = ""
    for line in path.read_text().splitlines(keepends=True):
        if re.match(r"\s*(?://|/\*)", line):
            assert shortened(begun).count("`") % 2 == 0, line
        begun += line
