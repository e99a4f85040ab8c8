"""The files that a browser may load."""

from __future__ import annotations

import hashlib
import re
from importlib import resources

import pytest

from correlator.web import files

TEXTS = {path: resources.files("correlator.web").joinpath(name).read_text() for path, (name, _) in files().items()}
OWN = sorted(path for path in TEXTS if not path.startswith("/vendor/"))


def test_the_files_of_the_page_are_served_and_no_python_or_licence():
    assert {
        "/",
        "/client.js",
        "/client.d.ts",
        "/page.css",
        "/page/main.js",
        "/vendor/preact.js",
        "/favicon.svg",
    } <= set(TEXTS)
    assert not [path for path in TEXTS if path.endswith((".py", ".md", ".html")) or "LICENSE" in path]


@pytest.mark.parametrize("path", [path for path in OWN if path.endswith(".js")])
def test_every_import_is_a_file_that_is_served(path):
    for target in re.findall(r'from "(\.[^"]+)"', TEXTS[path]):
        folder = path.rsplit("/", 1)[0]
        resolved = f"{folder.rsplit('/', 1)[0]}/{target[3:]}" if target.startswith("../") else f"{folder}/{target[2:]}"
        assert resolved in TEXTS, f"{path} imports {target}"


@pytest.mark.parametrize("path", OWN)
def test_no_file_needs_what_the_content_security_policy_forbids_or_another_host(path):
    text = TEXTS[path].replace("http://www.w3.org/2000/svg", "")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|javascript:", text
    )
    assert not re.search(r"https?://", text)
    if path == "/":
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", text)


def test_vendored_files_are_as_they_were_released():
    folder = resources.files("correlator.web").joinpath("vendor")
    listing = folder.joinpath("VENDOR.md").read_text()
    listed = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", listing, re.MULTILINE)}
    served = {path.rsplit("/", 1)[1] for path in TEXTS if path.startswith("/vendor/")}
    assert listed.keys() == served
    for name, digest in listed.items():
        assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() == digest
