"""The keys that the stream may not have: when they are clean, in which order they are written, what is forgotten."""

from correlator.sinks.cluster.documents import DirtyKeys


def keys(clock=lambda: 0.0, **more):
    return DirtyKeys(clock, **more)


def popped(dirty, most=10):
    found: list[str] = []
    while len(found) < most and (key := dirty.pop_next()) is not None:
        found.append(key)
    return found


def test_keys_without_an_acknowledgement_are_written_first_and_keep_their_age():
    now = 0.0
    dirty = keys(lambda: now)
    dirty.mark("a")
    dirty.mark("b")
    popped(dirty)
    now = 5.0
    dirty.mark("b")
    dirty.mark("c")
    dirty.unacknowledged()
    assert dirty.oldest() == 0.0
    assert popped(dirty) == ["a", "b", "c"]


def test_changes_and_differences_take_turns():
    dirty = keys()
    dirty.add(["old 1", "old 2", "old 3"])
    dirty.mark("new 1")
    dirty.mark("new 2")
    assert popped(dirty) == ["new 1", "old 1", "new 2", "old 2", "old 3"]


def test_a_difference_that_changes_is_written_once():
    dirty = keys()
    dirty.add(["a"])
    dirty.mark("a")
    dirty.add(["a"])
    assert popped(dirty) == ["a"]


def test_the_reason_of_a_removal_is_known_until_it_is_acknowledged():
    dirty = keys()
    dirty.mark_removed("a", "retention")
    popped(dirty)
    dirty.unacknowledged()
    popped(dirty)
    assert dirty.removal("a") == "retention"
    dirty.acknowledged()
    assert dirty.removal("a") == "gone"


def test_a_job_that_is_removed_again_in_flight_keeps_its_new_reason():
    dirty = keys()
    dirty.mark_removed("a", "retention")
    popped(dirty)
    dirty.mark_removed("a", "merged")
    dirty.acknowledged()
    assert popped(dirty) == ["a"]
    assert dirty.removal("a") == "merged"


def test_removed_jobs_are_bounded_and_a_comparison_finds_those_that_were_dropped():
    dirty = keys(max_removed=2)
    for n in range(3):
        dirty.mark_removed(str(n), "retention")
    assert dirty.incomplete
    assert popped(dirty) == ["1", "2"]


def test_a_comparison_leaves_out_what_is_dirty_in_flight_or_marked_meanwhile():
    dirty = keys()
    dirty.mark("in flight")
    dirty.pop_next()
    dirty.mark("dirty")
    dirty.add(["differing"])
    touched = dirty.begin_comparison()
    assert touched == {"in flight", "dirty", "differing"}
    dirty.mark("marked")
    dirty.mark_removed("removed", "gone")
    assert touched == {"in flight", "dirty", "differing", "marked", "removed"}
    dirty.end_comparison()
    dirty.mark("later")
    assert "later" not in touched
