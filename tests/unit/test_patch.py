"""Deltas: what is merged into the document that a reader holds gives the next one (RFC 7386)."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.jobs import wire
from tests.daemon import merge

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2).map(lambda f: round(f, 1)) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


def plain(value):
    """Where a missing member and null mean the same, at every level that a patch reaches."""
    return {k: plain(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


@given(OBJECTS, OBJECTS)
def test_the_patch_merged_into_the_old_gives_the_new(old, new):
    patch = json.loads(wire.encode(wire.patch(old, new)))
    assert json.dumps(plain(merge(old, patch)), sort_keys=True) == json.dumps(plain(new), sort_keys=True)


@given(OBJECTS)
def test_what_did_not_change_needs_no_patch(value):
    assert wire.patch(value, value) == {}


@pytest.mark.parametrize(("old", "new"), [(1, True), (1, 1.0), (0, False), ([1], [True]), ([1], [1.0])])
def test_what_is_equal_in_python_and_not_in_json_is_patched(old, new):
    assert wire.patch({"a": old}, {"a": new}) == {"a": new}


def test_a_patch_addresses_one_step_and_leaves_the_others_out():
    old = {"steps": {"1": {"status": "running", "error": None}, "2": {"status": "running"}}, "rev": 1}
    new = {"steps": {"1": {"status": "completed", "error": None}, "3": {"status": "running"}}, "rev": 2}
    assert wire.patch(old, new) == {
        "steps": {"1": {"status": "completed"}, "2": None, "3": {"status": "running"}},
        "rev": 2,
    }
