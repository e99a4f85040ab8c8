"""The sentence that says why a job failed. The page says the same (`tests/web/failure.test.mjs`)."""

import json

import pytest

from correlator.failures.sentence import sentence
from tests.support.paths import REPOSITORY

CASES = json.loads((REPOSITORY / "tests/data/sentences.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["sentence"])
def test_the_sentence_of_a_failure(case):
    assert sentence(case["certainty"], case["step"], case["text"], case["last"]) == case["sentence"]
