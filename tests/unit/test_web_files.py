"""The files that a browser may load: which, what they need, and how several modules become one."""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from correlator.web import files, joined, joined_in_two, shortened
from deploy.sbom import vendored
from tests.support.eventually import PATIENCE
from tests.support.servers import program

ROOT = Path(str(resources.files("correlator.web")))
SERVED = {re.sub(r"-[0-9a-f]{20}\.", ".", path): file for path, file in files().items()}


def test_two_files_make_the_page_a_script_follows_when_wanted_and_the_others_are_for_guis():
    for_guis = {f"/{name}{suffix}" for name in ("client", "progress", "react") for suffix in (".js", ".d.ts")}
    assert SERVED.keys() == {"/", "/page.js", "/views.js", "/favicon.svg"} | for_guis
    page = SERVED["/"].body.decode()
    assert ["/" + name for name in re.findall(r'(?:src|href)="((?!api)[^"]+)"', page)] == [
        "/favicon.svg",
        next(path for path in files() if path.startswith("/page-")),
    ]
    views = re.findall(r'import\("\.(/views-[^"]+)"\)', SERVED["/page.js"].body.decode())
    assert views == [path for path in files() if path.startswith("/views-")]


def test_an_address_with_a_hash_has_one_content_whatever_serves_the_page_below_70_kb():
    hashed = {path: file.body for path, file in files(gateway=True).items() if file.is_hashed}
    assert hashed == {path: file.body for path, file in files().items() if file.is_hashed}
    for path, body in hashed.items():
        assert path.rpartition("-")[2].startswith(hashlib.sha256(body).hexdigest()[:20])
    assert all(gzip.decompress(file.compressed) == file.body for file in SERVED.values())
    assert sum(len(SERVED[path].compressed) for path in ("/", "/page.js")) < 70_000


def test_a_served_script_imports_none_but_these_and_begins_with_its_directive():
    allowed: dict[str, list[str]] = {"/client.js": [], "/page.js": [], "/views.js": []}
    allowed |= {"/progress.js": ["./client.js"], "/react.js": ["./client.js", "react"]}
    imported = re.compile(r'^(?:import|export)\b[^;]* from "([^"]+)"', re.MULTILINE)
    scripts = {path: file.body.decode() for path, file in SERVED.items() if path.endswith(".js")}
    assert {path: sorted(set(imported.findall(text))) for path, text in scripts.items()} == allowed
    assert scripts["/react.js"].startswith('"use client";\n')
    assert all(f"{one.name} {one.version} ({one.licence.split(',')[0]})" in scripts["/page.js"] for one in vendored())


def test_no_file_needs_what_the_content_security_policy_forbids_or_another_host():
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|javascript:"
    for path in ROOT.rglob("*"):
        if path.suffix in (".js", ".css", ".html", ".svg") and path.parent.name != "vendor":
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(f"{forbidden}|https?://", text), path
            assert path.suffix != ".html" or not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", text)


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
        [program("node"), "script.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.stderr == ""
    assert done.stdout.strip() == '[["a","inner",1],"a","b","main.js","parts/c.js"]'


def test_a_module_of_two_scripts_is_evaluated_once(tmp_path):
    modules = {
        "first.js": """
import { count } from "./state.js";
import { only } from "./only.js";
export const before = [count(), only];
export const later = () => import("./later.js");
""",
        "later.js": """
import { count } from "./state.js";
import { own } from "./own.js";
export const after = [count(), own];
""",
        "state.js": "let number = 0;\nexport const count = () => ++number;\n",
        "only.js": 'export const only = "only";\n',
        "own.js": 'export const own = "own";\n',
    }
    first, second = joined_in_two("first.js", "later.js", read=modules.__getitem__)
    assert "number = 0" not in second
    (tmp_path / "first.mjs").write_text(first.replace("later.js", "later.mjs"))
    (tmp_path / "later.mjs").write_text(second)
    script = """
        const { before, later } = await import("./first.mjs");
        console.log(JSON.stringify([before, (await later()).after]));
    """
    (tmp_path / "script.mjs").write_text(script)
    done = subprocess.run(
        [program("node"), "script.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.stderr == ""
    assert done.stdout.strip() == '[[1,"only"],[2,"own"]]'


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
            {"parts/b.js": "export let a = 1;\n"},
            "parts/b.js has a form that is not known here: export let a = 1;",
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


def test_only_indentation_and_comments_that_fill_or_end_a_line_are_left_out():
    kept = '/*! Licence */\ncall("https://a");\n/** @type {A} */ const a = `b`;\n\nif (a) {\nb();  c();\n}\n'
    left_out = "// one\n  /* two\n   * // three */\n\t/**/\n"
    commented = kept.replace('a");', 'a"); // why').replace("(a) {", "(a) { // https://a").replace("b();", "  \tb();")
    assert shortened(left_out + commented + left_out) == kept


def test_no_line_of_a_template_looks_like_a_comment():
    for path in ROOT.glob("page/*.js"):
        begun = ""
        for line in path.read_text().splitlines(keepends=True):
            if re.search(r"^\s*(?://|/\*)|[;,{}] //", line):
                assert shortened(begun).count("`") % 2 == 0, line
            begun += line
