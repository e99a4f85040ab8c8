"""Names: any ID → the jobs that carry it."""

from hypothesis import given
from hypothesis import strategies as st

from correlator.jobs.names import Names


def test_an_id_that_nobody_carries_leads_nowhere():
    assert Names().get("x") == ()


def test_an_id_leads_to_every_job_that_carries_it():
    names = Names()
    names.move("a", [], ["x", "y"])
    names.move("b", [], ["x"])
    assert (set(names.get("x")), names.get("y"), len(names)) == ({"a", "b"}, ("a",), 2)


def test_move_tells_which_names_changed_hands():
    names = Names()
    assert names.move("a", [], ["x", "y", "x"]) == {"x", "y"}
    assert names.move("a", ["x", "y"], ["y", "z"]) == {"x", "z"}
    assert names.move("a", ["y", "z"], ["z", "y"]) == set()


def test_a_name_that_the_last_job_gave_up_takes_no_room():
    names = Names()
    names.move("a", [], ["x"])
    names.move("b", [], ["x"])
    names.move("a", ["x"], [])
    assert names.get("x") == ("b",)
    names.move("b", ["x"], [])
    assert len(names) == 0


carried = st.frozensets(st.sampled_from("vwxyz"))


@given(st.lists(st.tuples(st.sampled_from("abc"), carried), max_size=20))
def test_after_any_moves_each_name_leads_to_those_that_carry_it_now(moves):
    names = Names()
    now: dict[str, frozenset[str]] = dict.fromkeys("abc", frozenset())
    for job_id, after in moves:
        names.move(job_id, now[job_id], after)
        now[job_id] = after
    for name in "vwxyz":
        assert sorted(names.get(name)) == [j for j in "abc" if name in now[j]]
    assert len(names) == len(frozenset().union(*now.values()))
