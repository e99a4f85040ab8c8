"""Subjects: any ID becomes one token and comes back, and no ID becomes the key of something else."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from correlator.cluster import keys


@given(st.text())
@example("")
@example("a.b *>=")
@example("\ud800")
def test_every_id_becomes_one_token_of_a_subject_and_comes_back(name):
    token = keys.escape(name)
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", token)
    assert keys.unescape(token) == name


@pytest.mark.parametrize("token", ["", "==", "=4", "=2e", "a.b", "ä", "=FF"])
def test_what_is_no_escaped_name_is_refused(token):
    with pytest.raises(ValueError):
        keys.unescape(token)


def test_the_job_of_a_subject_is_the_one_that_it_was_made_for():
    assert keys.job_of(keys.job("dc1", "a/1")) == ("dc1", "a/1")
    assert keys.job_of(keys.owner("dc1")) is None
    assert keys.job_of(keys.EPOCH) is None
    for other in ("dc1.job.=zz", "dc1.job.a.b", "dc1.jobs.a", "d=1.job.a"):
        assert keys.job_of(f"$KV.cor.{other}") is None
    assert keys.job_of("$KV.cor_alive.dc1.job.a") is None
    assert keys.job("dc1", "owner") != keys.owner("dc1")
