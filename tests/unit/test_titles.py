"""Titles of operations and steps in documents, and the labels of the configuration that they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from correlator.app import core_of
from correlator.config.loading import load
from correlator.errors import ConfigError
from correlator.model.document import ForecastState, StepAhead
from correlator.model.facts import Status
from correlator.model.published import Forecast, JobForecast, JobView, PublishedJob, Titles
from correlator.model.rows import StepRecord
from tests.support.documents import document_of, patch_of

TITLES = Titles({"live": "Live failover"}, {"sync": "Final synchronisation", "boot": "Start of the VM"})
STEPS = (StepRecord(1, "check", 1, "completed"), StepRecord(2, "sync", 2, "running"))
FORECAST = Forecast(
    1, 2, 3, 4.0, 5, ForecastState.ON_TRACK, 6.0, 0.1, (StepAhead("boot", 1.0, 2.0), StepAhead("x", 1.0, 2.0))
)
SHOWN = PublishedJob(
    JobView("j", Status.RUNNING, operation="live", steps=STEPS), 3, 1_000_000,
    forecast=JobForecast(4.0, "history", FORECAST), titles=TITLES,
)  # fmt: skip


def test_a_document_has_the_titles_beside_the_names_and_none_without_a_label():
    document = document_of(SHOWN)
    assert (document["operation"], document["title"]) == ("live", "Live failover")
    assert (document["current_step"], document["current_step_title"]) == ("sync", "Final synchronisation")
    assert [step.get("title") for step in document["steps"].values()] == [None, "Final synchronisation"]
    assert document["forecast"] is not None
    assert [step.get("title") for step in document["forecast"]["steps_ahead"]] == ["Start of the VM", None]
    plain = document_of(replace(SHOWN, titles=Titles()))
    assert "title" not in repr(plain)
    assert not document_of(SHOWN, steps=False)["steps"]


def test_a_delta_carries_the_title_of_the_next_step():
    steps = (*STEPS[:1], replace(STEPS[1], status="completed"), StepRecord(3, "boot", 3, "running"))
    patch = patch_of(SHOWN, replace(SHOWN, view=replace(SHOWN.view, steps=steps)))
    assert (patch["current_step_title"], patch["steps"]["3"]["title"]) == ("Start of the VM", "Start of the VM")


def test_labels_of_the_configuration_reach_the_index(tmp_path: Path):
    file = tmp_path / "correlator.toml"
    file.write_text(
        '[database]\nurl = "sqlite:///x"\n'
        '[labels]\noperations = ["live = Live failover"]\nsteps = ["sync=Final = end"]\n'
    )
    config = load(file, {"HOME": str(tmp_path)})
    titles = core_of(config, lambda: config).hub.index.published.titles
    assert titles == Titles({"live": "Live failover"}, {"sync": "Final = end"})


@pytest.mark.parametrize(
    "value",
    [
        '"sync"', '["sync"]', '["= x"]', '["sync ="]', '["a = b", "a = c"]', '["a = b\\nc"]', "[1]",
        f'["a = {"x" * 201}"]',
    ],
)  # fmt: skip
def test_a_wrong_label_is_named_with_what_is_expected(tmp_path: Path, value: str):
    file = tmp_path / "correlator.toml"
    file.write_text(f"[labels]\nsteps = {value}\n")
    with pytest.raises(ConfigError, match=r'labels\.steps = .*"final-sync = Final synchronisation"'):
        load(file, {"HOME": str(tmp_path)})
