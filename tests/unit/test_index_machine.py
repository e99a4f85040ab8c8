"""The index publishes what a second one computes that starts from all facts at each step.

`make test` runs 60 examples, HYPOTHESIS_PROFILE=long 10,000.
"""

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.naive_index import IndexMachine

LONG = settings().max_examples > 1000


@pytest.mark.parametrize("part", range(20 if LONG else 1))
def test_whatever_the_order_the_index_publishes_what_all_facts_say(part):
    run_state_machine_as_test(IndexMachine, settings=settings(max_examples=500 if LONG else 60, stateful_step_count=25))
