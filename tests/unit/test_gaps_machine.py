"""No row is lost: the real tail on a simulated InnoDB, whatever writers, server and network do.

`make test` runs 150 examples, HYPOTHESIS_PROFILE=long 10,000.
"""

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.tail_state_machine import TailMachine

LONG = settings().max_examples > 1000


@pytest.mark.parametrize("part", range(20 if LONG else 1))
def test_nothing_is_lost(part):
    run_state_machine_as_test(TailMachine, settings=settings(max_examples=500 if LONG else 75, stateful_step_count=50))
