"""The pictures of the documentation can be renewed, and are small."""

import html
import json
import re

import pytest

from tests.docs import dashboard_picture
from tests.docs.pictures import FOLDER


def test_the_picture_of_the_dashboard_has_the_panels_of_its_file():
    panels = json.loads(dashboard_picture.FILE.read_text())["panels"]
    shown = [html.unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", dashboard_picture.page())]
    assert shown == list(dashboard_picture.VALUES)
    titles = [panel["title"] for panel in panels if panel["type"] != "row"]
    assert titles[: len(shown)] == shown


def test_values_that_fit_no_legend_of_the_dashboard_are_an_error(monkeypatch):
    monkeypatch.setitem(dashboard_picture.VALUES, "Rows", (dashboard_picture.Series("written", 1),))
    with pytest.raises(ValueError, match="written fits none of"):
        dashboard_picture.page()


def test_no_picture_is_larger_than_150_kb():
    assert {path.name for path in FOLDER.iterdir()} == {"dashboard.png", "job.png", "progress.png", "watch.svg"}
    assert [path.name for path in FOLDER.iterdir() if path.stat().st_size > 150_000] == []
