"""The pictures of the documentation can be renewed, and are small."""

import re
import tomllib

import pytest

from tests.docs.pictures import FOLDER
from tests.support.markdown import read

MADE = {"job.png", "progress.png", "watch.svg"}
DRAWN = {"dataflow.svg", "fleet.svg", "rooms.svg"}
"""MADE: by `make pictures`; DRAWN: by hand."""


def test_the_picture_of_the_rooms_has_every_room_of_the_import_rules():
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    rooms = {room for layer in layers for room in re.findall(r"\w+", layer)} - {"__main__"}
    drawn = re.findall(r">([^<>]+)</text>", (FOLDER / "rooms.svg").read_text())
    assert rooms <= set(re.findall(r"(\w+)(?:/|\.py)", " ".join(drawn)))


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_a_drawing_is_readable_in_both_themes(name):
    text = (FOLDER / name).read_text()
    light, _, dark = text.partition("</style>")[0].partition("@media (prefers-color-scheme: dark)")
    coloured = re.compile(r"^ *([\w., ]+) \{[^}]*#", re.MULTILINE)
    assert len(coloured.findall(light)) > 5
    assert set(coloured.findall(light)) == set(coloured.findall(dark))
    assert not re.search(r"<\w+[^>]* (?:fill|stroke)=", text)


def test_no_picture_is_larger_than_150_kb():
    assert {path.name for path in FOLDER.iterdir()} == MADE | DRAWN
    assert [path.name for path in FOLDER.iterdir() if path.stat().st_size > 150_000] == []
