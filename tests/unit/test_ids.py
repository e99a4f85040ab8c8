"""Names: any ID → the jobs that carry it, and the newest of them, which owns it."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from correlator.jobs.directory import Names

NEVER = (0, 0, "")


class World:
    """Jobs with an age, and the names they carry."""

    def __init__(self):
        self.ages: dict[str, tuple[int, int, str]] = {}
        self.carried: dict[str, Any] = {}
        self.names = Names(lambda job_id: self.ages[job_id])

    def move(self, job_id, names, started=0):
        old, was = self.carried.get(job_id, ()), self.ages.get(job_id, NEVER)
        self.ages[job_id], self.carried[job_id] = (started, 0, job_id), names
        return self.names.move(job_id, old, was, names, self.ages[job_id])


carried = st.frozensets(st.sampled_from("vwxyz"))


@given(st.lists(st.tuples(st.sampled_from("abcd"), carried, st.integers(0, 3)), max_size=20))
def test_after_any_moves_each_name_leads_to_those_that_carry_it_now_by_their_age(moves):
    world = World()
    for job_id, names, started in moves:
        owners = {name: world.names.owner(name) for name in "vwxyz"}
        moved = world.move(job_id, names, started)
        for name in "vwxyz":
            now = world.names.owner(name)
            assert moved.get(name, set()) == ({owners[name], now} - {None} if owners[name] != now else set())
    for name in "vwxyz":
        found = [job_id for job_id, names in world.carried.items() if name in names]
        assert list(world.names.get(name)) == sorted(found, key=lambda j: world.ages[j], reverse=True)
    assert len(world.names._claims) == len(frozenset().union(*world.carried.values()))
