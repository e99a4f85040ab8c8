"""However many ids are missing, what is kept of them is bounded, and the newest are kept."""

from correlator.sources.gaps import MAX_COLD, MAX_IDS, MAX_KEPT, Gaps


def in_threes(windows: int, holes: int) -> Gaps:
    """`windows` of `holes` each."""
    gaps, at = Gaps(), 0
    for number in range(windows):
        gaps.advance(range(at + 3, at + 3 * holes + 3, 3), float(number))
        at += 3 * holes
    return gaps


def ranges(windows) -> int:
    return sum(len(w.holes) for w in windows)


def test_a_checkpoint_holds_the_newest_holes_and_no_more_than_it_has_room_for():
    gaps = in_threes(40, 1_000)
    kept = gaps.kept()
    flat = [hole for window in kept for hole in window]
    assert len(flat) == MAX_KEPT
    everything = [hole for w in gaps.open for hole in w.holes]
    assert flat == everything[-MAX_KEPT:]
    few = in_threes(3, 10)
    assert few.kept() == tuple(tuple(w.holes) for w in few.open)


def test_open_windows_are_kept_before_cold_ones():
    gaps = in_threes(20, 1_000)
    settle(gaps, gaps.open[:15])
    assert len(gaps.open) == 5
    kept = gaps.kept()
    assert kept[-5:] == tuple(tuple(w.holes) for w in gaps.open)
    assert sum(map(len, kept)) == MAX_KEPT


def test_of_too_many_cold_holes_the_oldest_are_given_up():
    gaps = in_threes(150, 1_000)
    newest = [tuple(w.holes) for w in gaps.open[-50:]]
    settle(gaps, list(gaps.open))
    assert gaps.open == []
    assert MAX_COLD - 1_000 <= ranges(gaps.cold) <= MAX_COLD
    assert [tuple(w.holes) for w in gaps.cold[-50:]] == newest


def settle(gaps, windows) -> None:
    for window in windows:
        window.settled = 1.0
    gaps._file()


def test_one_probe_asks_for_a_bounded_number_of_ids():
    gaps = in_threes(50, 1_000)
    probe = gaps.probe(1e9)
    assert probe is not None
    assert sum(last - first + 1 for first, last in probe.ranges) <= MAX_IDS
    far = Gaps()
    far.advance([10**12], 0.0)
    assert far.probe(1e9) is not None, "one window is probed however wide it is"
