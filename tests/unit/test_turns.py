"""The classes in which the work of requests runs: bounds, a fair order, and room for everything else in between."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections import Counter

import pytest

from correlator.sinks.turns import Bursts, Held, Newcomers, Refused, Turns
from tests.support.background import in_background
from tests.support.eventually import PATIENCE, eventually


async def _pieces(turns: Turns, address: str, count: int, done: list[str]) -> None:
    async def piece() -> None:
        async with turns.turn(address):
            await asyncio.sleep(0)
            done.append(address)

    await asyncio.gather(*(piece() for _ in range(count)))


async def test_an_address_with_one_piece_waits_for_one_piece_of_each_other_address():
    turns, done = Turns("lists", at_once=1), list[str]()
    many = [asyncio.create_task(_pieces(turns, address, 100, done)) for address in ("a", "b")]
    await asyncio.sleep(0)
    await _pieces(turns, "c", 1, done)
    assert done.index("c") <= 4
    await asyncio.gather(*many)
    assert Counter(done) == {"a": 100, "b": 100, "c": 1}


async def test_the_next_piece_begins_in_a_later_round_of_the_loop():
    turns, done = Turns("lists", at_once=3), list[str]()
    rounds: list[int] = []

    async def count() -> None:
        while True:
            rounds.append(len(done))
            await asyncio.sleep(0)

    async def piece() -> None:
        async with turns.turn("a"):
            done.append("a")

    counting = asyncio.create_task(count())
    await asyncio.gather(*(piece() for _ in range(100)))
    counting.cancel()
    assert max(b - a for a, b in itertools.pairwise(rounds)) == 3


async def test_no_address_runs_more_than_its_part_and_others_pass_it():
    turns = Turns("searches", at_once=3, each=2)
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    end = asyncio.Event()

    async def piece(address: str) -> None:
        async with turns.turn(address):
            running[address] += 1
            most[address] = max(most[address], running[address])
            await end.wait()
            running[address] -= 1

    tasks = [asyncio.create_task(piece(address)) for address in "aaaaab"]
    for _ in range(5):
        await asyncio.sleep(0)
    assert (running, turns.waiting) == ({"a": 2, "b": 1}, 3)
    end.set()
    await asyncio.gather(*tasks)
    assert most == {"a": 2, "b": 1}


async def test_what_is_cancelled_at_any_moment_gives_its_turn_back():
    for rounds in range(12):
        turns, done = Turns("lists", at_once=1, waiting=1_000), list[str]()
        tasks = [asyncio.create_task(_pieces(turns, address, 1, done)) for address in "aabbcc" * 5]
        for _ in range(rounds):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(_pieces(turns, "d", 1, done), PATIENCE)
        assert done[-1] == "d"
        assert turns.waiting == 0


async def hold(turns: Turns, address: str, end: asyncio.Event) -> None:
    async with turns.turn(address):
        await end.wait()


async def test_an_address_above_its_part_is_refused_and_no_other_one_is():
    turns, end = Turns("lists", at_once=1, waiting=3, waiting_each=2), asyncio.Event()
    tasks = [asyncio.create_task(hold(turns, "a", end)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Refused) as of_address:
        await hold(turns, "a", end)
    tasks.append(asyncio.create_task(hold(turns, "b", end)))
    await asyncio.sleep(0)
    with pytest.raises(Refused) as of_all:
        await hold(turns, "c", end)
    assert (of_address.value.all_clients, of_all.value.all_clients) == (False, True)
    end.set()
    await asyncio.gather(*tasks)


def test_a_wait_ends_at_its_deadline_and_leaves_no_trace(loop):
    turns = Turns("lists", at_once=1, within=30.0)
    running, waiting = (loop.create_task(hold(turns, "a", asyncio.Event())) for _ in range(2))
    loop.run(29.9)
    assert (turns.waiting, waiting.done()) == (1, False)
    loop.run(0.2)
    assert isinstance(waiting.exception(), Refused)
    assert (turns.waiting, running.done()) == (0, False)


def test_held_amounts_are_bounded_for_each_address_and_for_all():
    held = Held("bytes", most=10, each=6)
    with held.holding("a", 6):
        with pytest.raises(Refused) as of_address:
            held.check("a")
        held.check("b")
        with held.holding("b", 4), pytest.raises(Refused) as of_all:
            held.check("c")
    assert (of_address.value.all_clients, of_all.value.all_clients) == (False, True)
    assert held.total == 0
    held.check("a")


def test_a_newcomer_beyond_the_bound_ends_the_oldest_one_of_the_address_with_most():
    newcomers, ended = Newcomers(5), list[str]()
    calls = {name: functools.partial(ended.append, name) for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1", "c2")}

    def enter(*names: str) -> list[str]:
        ended.clear()
        for name in names:
            newcomers.enter(name[0], calls[name])
        return ended.copy()

    assert enter("a1", "b1", "a2", "a3", "a4") == []
    assert enter("c1", "b2") == ["a1", "a2"]
    for _ in range(2):
        newcomers.leave("a", calls["a3"])
        newcomers.leave("a", calls["a1"])
    assert len(newcomers) == 4
    assert enter("c2") == []
    for name in ("a4", "b1", "b2", "c1", "c2"):
        newcomers.leave(name[0], calls[name])
    assert len(newcomers) == 0


async def test_calls_that_come_in_bursts_are_made_a_few_in_each_round_and_addresses_take_turns():
    bursts, rounds, made = Bursts(8, 60.0), 0, list[tuple[int, str, int]]()

    async def count_rounds() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    def add(address: str, number: int) -> None:
        bursts.add(address, lambda: made.append((rounds, address, number)))

    async with in_background(count_rounds()):
        for number in range(300):
            add("many", number)
        for number in range(3):
            add("few", number)
        await eventually(lambda: len(made) == 303)
        add("later", 0)
        assert made[-1][1] == "later", "there was room"
    assert max(Counter(number for number, *_ in made).values()) <= 8
    for address in ("many", "few"):
        numbers = [number for _, one, number in made if one == address]
        assert numbers == sorted(numbers)
    assert max(n for n, one in enumerate(made) if one[1] == "few") < 16


async def test_a_call_that_takes_long_or_fails_ends_its_round_and_no_other_call_is_lost():
    loop, bursts, made = asyncio.get_running_loop(), Bursts(1_000, 0.001), list[int]()
    problems = list[object]()
    loop.set_exception_handler(lambda _, context: problems.append(context["exception"]))

    def call(number: int) -> None:
        made.append(number)
        time.sleep(0.002)
        if number % 2:
            raise ValueError(number)

    for number in range(10):
        bursts.add("a", functools.partial(call, number))
        assert made == [0], "one that takes so long is made in a round"
    await eventually(lambda: made == list(range(10)))
    assert len(problems) == 5
