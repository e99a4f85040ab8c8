"""Wrong tokens cost time, whoever else has the address; and the journal says who was refused, in bounded words."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

from hypothesis import example, given
from hypothesis import strategies as st

from correlator.model import job_token
from correlator.model.job_token import MIN_KEY
from correlator.ops import logs
from correlator.sinks.http.access import Access, Rules
from correlator.sinks.http.audit import BURST, MAX_SUBJECTS, Audit
from correlator.sinks.http.floods import FREE_GUESSES, MAX_FLOOD_DELAY, MAX_FLOODS, MAX_RIGHT, MAX_WAITING, Guesses
from correlator.sinks.http.grants import REASONS, Denied, Grant
from tests.support.held import held
from tests.support.virtual_time import VirtualTimeLoop

GUI = Grant("gui", b"the-token-of-the-gui")
RIGHT = GUI.secret.decode()


def access(loop: VirtualTimeLoop) -> Access:
    return Access(listen_host="x", clock=loop.time, now=loop.time, rules=Rules([GUI]))


async def asked(at: Access, token: str, address: str = "192.0.2.1") -> tuple[str, float]:
    """Why a token is denied ("" if it is right), and the seconds that it took to say so."""
    clock = asyncio.get_running_loop().time
    began = clock()
    try:
        await at.log_in(token, address)
    except Denied as denied:
        return denied.reason, clock() - began
    return "", clock() - began


def done(loop: VirtualTimeLoop, work: Coroutine[object, object, None]) -> None:
    """Run it to its end."""
    task = loop.create_task(work)
    loop.run(100_000)
    task.result()


def test_an_address_that_guesses_waits_ever_longer_and_no_other_one_does(loop: VirtualTimeLoop):
    async def run() -> None:
        at = access(loop)
        took = [await asked(at, f"guess-{n}") for n in range(60)]
        assert {reason for reason, _ in took} == {"wrong_token"}
        assert [seconds for _, seconds in took[: FREE_GUESSES + 1]] == [0.0] * (FREE_GUESSES + 1)
        assert took[FREE_GUESSES + 1][1] > 0
        assert await asked(at, RIGHT, "192.0.2.2") == ("", 0.0)

    done(loop, run())


def test_however_many_guesses_come_at_once_few_are_checked_in_a_second(loop: VirtualTimeLoop):
    async def run() -> None:
        at, results = access(loop), list[str]()

        async def guess(n: int) -> None:
            await asyncio.sleep(n / 1_000)
            results.append((await asked(at, f"guess-{n}"))[0])

        await asyncio.gather(*(guess(n) for n in range(20_000)))
        checked = results.count("wrong_token")
        assert checked + results.count("guesses") == 20_000
        seconds = 20.0
        assert checked <= seconds * MAX_WAITING / MAX_FLOOD_DELAY + FREE_GUESSES + 2 * MAX_WAITING, checked

    done(loop, run())


def test_a_token_that_a_key_has_signed_waits_for_no_guesses_and_a_forged_one_is_a_guess(loop: VirtualTimeLoop):
    """Each page has a new one, so that its address cannot have sent it before."""

    async def run() -> None:
        rules = Rules([GUI], job_keys=["k" * MIN_KEY])
        at = Access(listen_host="x", clock=loop.time, now=loop.time, rules=rules)
        signed, forged = (job_token.create(key * MIN_KEY, job="gui-1", now=loop.time()) for key in "kf")
        async with asyncio.TaskGroup() as guesses:
            for n in range(FREE_GUESSES + 3 * MAX_WAITING):
                guesses.create_task(asked(at, f"guess-{n}"))
                await asyncio.sleep(0)
            assert await asked(at, signed) == ("", 0.0)
            assert await asked(at, forged) == ("guesses", 0.0)

    done(loop, run())


def test_a_right_token_is_answered_no_sooner_than_a_wrong_one_until_it_is_known_there(
    loop: VirtualTimeLoop,
):
    async def run() -> None:
        at = access(loop)
        assert await asked(at, RIGHT, "198.51.100.7") == ("", 0.0)
        addresses = ("192.0.2.1", "198.51.100.7")
        await asyncio.gather(*(asked(at, f"guess-{n}", address) for n in range(16) for address in addresses))
        (wrong, slow), (right, as_slow) = await asyncio.gather(asked(at, "a-guess"), asked(at, RIGHT))
        assert (wrong, right) == ("wrong_token", "")
        assert slow == as_slow > 1.0
        assert await asked(at, RIGHT, "198.51.100.7") == ("", 0.0), "it came from there before the guesses"
        assert await asked(at, RIGHT) == ("", 0.0), "and from here it has now"

    done(loop, run())


def test_an_address_that_has_stopped_guessing_is_forgotten(loop: VirtualTimeLoop):
    async def run() -> None:
        at = access(loop)
        for n in range(100):
            await asked(at, f"guess-{n}")
        await asyncio.sleep(120)
        assert await asked(at, "a-typing-error") == ("wrong_token", 0.0)

    done(loop, run())


def test_what_is_remembered_of_tokens_and_addresses_has_a_bound_and_holds_no_token():
    guesses = Guesses(lambda: 0.0)
    sizes = []
    for first in (0, MAX_RIGHT):
        for n in range(first, first + MAX_RIGHT):
            guesses.right(f"a{n:09}", b"a long token " * 80)
            guesses.wrong(f"a{n:09}")
        sizes.append(held(guesses))
    assert sizes[0] < 500 * (MAX_RIGHT + MAX_FLOODS), "no token, which has 1,040 bytes"
    assert sizes[1] < 1.5 * sizes[0]


# -- the journal


def shown(record: logging.LogRecord) -> dict[str, object]:
    return {
        name: value
        for name, value in vars(record).items()
        if name in ("reason", "token", "address", "job_id", "suppressed", "of_others")
    }


def test_a_line_names_the_token_and_the_address_and_comes_again_after_a_minute_with_a_count(caplog):
    now = 0.0
    audit = Audit(lambda: now)
    for _ in range(1_000):
        audit.refused(Denied("scope", "this token does not have the scope read", GUI), "192.0.2.1")
    audit.refused(Denied("wrong_token", "this token is not known"), "192.0.2.1")
    now = 61.0
    audit.refused(Denied("scope", "this token does not have the scope read", GUI), "192.0.2.1")
    assert [shown(record) for record in caplog.records] == [
        {"reason": "scope", "token": "gui", "address": "192.0.2.1"},
        {"reason": "wrong_token", "token": "", "address": "192.0.2.1"},
        {"reason": "scope", "token": "gui", "address": "192.0.2.1", "suppressed": 999},
    ]
    assert {record.name for record in caplog.records} == {"correlator.audit"}
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_guesses_from_many_addresses_write_few_lines_and_lose_no_count(caplog):
    now = 0.0
    audit = Audit(lambda: now)
    sizes = []
    for n in range(3 * MAX_SUBJECTS):
        audit.refused(Denied("wrong_token", "this token is not known"), f"2001:db8:{n:x}::/64")
        if n + 1 in (MAX_SUBJECTS, 3 * MAX_SUBJECTS):
            sizes.append(held(audit))
    assert sizes[1] < 1.5 * sizes[0]
    assert len(caplog.records) == BURST
    now = 100.0
    audit.refused(Denied("wrong_token", "this token is not known"), "192.0.2.1")
    assert shown(caplog.records[-1])["of_others"] == 3 * MAX_SUBJECTS - BURST


def test_a_request_without_a_token_is_no_refused_login(caplog):
    audit = Audit(lambda: 0.0)
    for reason in REASONS:
        audit.refused(Denied(reason, "no"), "192.0.2.1")
    assert {shown(record)["reason"] for record in caplog.records} == set(REASONS) - {"no_token", "host", "origin"}


def test_each_log_that_is_downloaded_has_a_line_and_a_search_one_a_minute(caplog):
    now = 0.0
    audit = Audit(lambda: now)
    for job_id in ("a", "b", "a"):
        audit.downloaded(GUI, "192.0.2.1", job_id)
    for now in (0.0, 1.0, 61.0):  # noqa: B007 - the clock
        audit.searched(GUI, "192.0.2.1")
    assert [
        (record.getMessage(), shown(record).get("job_id"), shown(record).get("suppressed")) for record in caplog.records
    ] == [
        ("a log is downloaded", "a", None),
        ("a log is downloaded", "b", None),
        ("all logs are searched", None, None),
        ("all logs are searched", None, 1),
    ]


def test_the_lines_are_written_at_any_level_of_the_log(log_as_before, capsys):
    logs.configure("error", "text", {})
    Audit(lambda: 0.0).searched(GUI, "192.0.2.1")
    logging.getLogger("correlator.other").info("not this one")
    error = capsys.readouterr().err
    assert error.endswith(" INFO correlator.audit: all logs are searched token=gui address=192.0.2.1\n")
    assert "not this one" not in error


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.0, 1.0, 61.0]), st.integers(0, 50)), max_size=150))
@example([(0.0, n) for n in range(51)] * 2 + [(0.0 if n else 61.0, n) for n in range(51)])
def test_every_refusal_is_in_a_line_or_in_the_count_of_a_later_one(steps):
    """Summed over the lines, once nothing is held back any more: as many as there were."""
    now, handler = 0.0, Kept()
    log = logging.getLogger("correlator.audit")
    log.addHandler(handler)
    try:
        audit = Audit(lambda: now)
        for pause, address in [*steps, *((1e6, address) for address in range(51))]:
            now += pause
            audit.refused(Denied("wrong_token", "no"), str(address))
    finally:
        log.removeHandler(handler)
    counted = sum(
        1 + sum(int(str(shown(one).get(name, 0))) for name in ("suppressed", "of_others")) for one in handler.records
    )
    assert counted == len(steps) + 51
