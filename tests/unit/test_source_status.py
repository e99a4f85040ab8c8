"""The states of the tables, and the state of the database that follows from them."""

from __future__ import annotations

import logging

import pytest

from correlator.errors import Away, SourceUnavailable
from correlator.jobs.index import Index
from correlator.pipeline import source_status
from correlator.pipeline.source_status import ApplianceClock, SourcePart, SourceStatus

STARTED = 1_767_225_600_000_000


class Clock:
    """Both clocks of the status, moved by hand."""

    def __init__(self) -> None:
        self.passed = 0.0

    def monotonic(self) -> float:
        return 1000.0 + self.passed

    def uptime(self) -> int:
        return int(self.monotonic() * 1_000_000)

    def wall(self) -> int:
        return STARTED + int(self.passed * 1_000_000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def status(clock: Clock) -> SourceStatus:
    """That of a daemon that reads everything."""
    status = SourceStatus(Index(), ApplianceClock(clock.wall, clock.uptime), clock.monotonic)
    status.loading = False
    status.schema(tracking=True)
    status.answered()
    assert status.describe_database()["state"] == "live"
    return status


def failed(reason: Away, table: str = "job_steps") -> SourceUnavailable:
    return SourceUnavailable(f"MariaDB: {reason.value}", reason, table)


def states(status: SourceStatus) -> dict[str, str]:
    return {table: state["state"] for table, state in status.describe_tables()["states"].items()}


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (Away.MISSING_GRANTS, "refused"),
        (Away.LOCKED, "locked"),
        (Away.SLOW, "slow"),
        (Away.NO_ANSWER, "slow"),
        (Away.FAILED, "failing"),
    ],
)
def test_the_reason_of_a_failed_query_is_the_state_of_its_table(status: SourceStatus, reason: Away, state: str):
    status.part_failed(SourcePart.STEPS, failed(reason))
    part = status.describe_tables()
    assert (part["ok"], states(status)) == (False, {"job_steps": state})
    assert part["states"]["job_steps"]["since"] == "2026-01-01T00:00:00.000000Z"
    assert part["error"] == part["states"]["job_steps"]["error"]
    assert "MariaDB" not in part["error"]  # it is for anybody
    assert (status.database, status.describe_database()["error"]) == ("stale", part["error"])


def test_a_table_that_had_an_error_is_well_once_it_has_had_none_for_a_while(status: SourceStatus, clock: Clock):
    status.part_failed(SourcePart.JOBS, failed(Away.FAILED, "job_tracking"))
    clock.passed += source_status.STEADY - 0.1
    status.answered()
    status.part_answered(SourcePart.JOBS)
    assert states(status) == {"job_tracking": "failing"}
    clock.passed += 0.1
    status.part_answered(SourcePart.JOBS)
    assert (status.database, states(status)) == ("live", {})


@pytest.mark.parametrize("reason", [Away.LOCKED, Away.SLOW])
def test_a_table_that_was_waited_for_is_well_with_the_first_answer(status: SourceStatus, reason: Away):
    status.part_failed(SourcePart.JOBS, failed(reason, "job_tracking"))
    status.part_answered(SourcePart.JOBS)
    assert (status.database, states(status)) == ("live", {})


def test_restored_jobs_are_stale_until_all_of_them_have_been_read_again(clock: Clock):
    status = SourceStatus(Index(), ApplianceClock(clock.wall, clock.uptime), clock.monotonic)
    status.restored(clock.wall(), 60.0)
    for _ in range(3):
        clock.passed += 2
        status.answered()
        part = status.describe_database()
        assert (part["state"], part["error"]) == ("stale", "the jobs that have ended are being read again")
    status.read_again(SourcePart.LEGACY)
    status.part_failed(SourcePart.JOBS, failed(Away.LOCKED, "job_tracking"))
    status.part_answered(SourcePart.JOBS)  # A query that had to wait has missed nothing, and is not all of them.
    status.answered()
    assert status.describe_database()["state"] == "stale"
    status.read_again(SourcePart.JOBS)
    status.answered()
    assert status.describe_database()["state"] == "live"


def test_a_table_that_is_back_is_read_again_before_the_database_is_live(status: SourceStatus, clock: Clock):
    status.schema(tracking=True, lost=["job_steps.name", "job_steps"], changed=True)
    assert status.describe_tables()["missing"] == ["job_steps.name", "job_steps"]
    assert (status.database, states(status)) == ("stale", {"job_steps": "missing"})
    clock.passed += 1
    status.schema(tracking=True, changed=True)
    clock.passed += 2 * source_status.STEADY
    status.answered()
    assert status.describe_tables()["missing"] == []
    status.part_answered(SourcePart.STEPS)  # a query of few rows is not all that was missed
    assert (status.database, states(status)) == ("stale", {"job_steps": "reading"})
    assert status.describe_tables()["states"]["job_steps"]["since"] == "2026-01-01T00:00:00.000000Z"
    status.read_again(SourcePart.STEPS)
    assert (status.database, states(status)) == ("live", {})


def test_a_log_that_fails_is_well_after_a_change_of_the_schema_once_it_answers(
    status: SourceStatus, caplog: pytest.LogCaptureFixture
):
    status.part_failed(SourcePart.LOG, failed(Away.FAILED, "log_events"))
    status.schema(tracking=True, changed=True)
    assert (status.database, states(status)) == ("stale", {"log_events": "failing"})
    status.part_failed(SourcePart.LOG, failed(Away.FAILED, "log_events"))
    assert len(caplog.records) == 1
    status.schema(tracking=True, changed=True)
    status.answered()
    assert (status.database, states(status)) == ("live", {})


def test_a_state_lasts_since_its_first_failure_and_is_logged_once(
    status: SourceStatus, clock: Clock, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, source_status.__name__)
    for _ in range(50):
        status.part_failed(SourcePart.LOG, failed(Away.LOCKED, "log_events"))
        clock.passed += 5
        status.judge()
    assert status.describe_tables()["states"]["log_events"]["since"] == "2026-01-01T00:00:00.000000Z"
    assert status.database == "down"
    assert "LOCK TABLES" in status.describe_database()["error"]
    assert status.lag_seconds == 250
    assert len(caplog.records) == 1
    status.answered()
    assert (status.database, status.lag_seconds) == ("live", 0.0)
    assert "new rows are read again, after 250 s" in caplog.messages[-1]


def test_an_outage_is_logged_once_for_each_reason_whatever_the_texts_say(
    status: SourceStatus, caplog: pytest.LogCaptureFixture
):
    def fail(number: int, reason: Away, code: int) -> None:
        error = SourceUnavailable(f"MariaDB: [::{number % 2 + 1}]: refused, attempt {number}", reason)
        error.__cause__ = OSError(code, "…")
        status.failed(error)

    for _ in range(2):
        caplog.clear()
        for number in range(20):
            fail(number, Away.UNREACHABLE, 2003)
        fail(20, Away.LOGIN_REFUSED, 1045)
        fail(21, Away.LOGIN_REFUSED, 1049)
        fail(22, Away.UNREACHABLE, 2003)
        said = [m for m in caplog.messages if "unreachable" in m]
        assert [message[-2:] for message in said] == [" 0", "20", "21"]
        status.answered()


def test_the_error_of_a_silent_database_names_the_table_at_once(status: SourceStatus, clock: Clock):
    clock.passed += source_status.STALE_AFTER + 1
    status.judge()
    assert status.describe_database()["error"] == "the database does not answer"
    status.part_failed(SourcePart.LOG, failed(Away.LOCKED, "log_events"))
    assert "LOCK TABLES" in status.describe_database()["error"]


def test_a_database_whose_table_fails_is_not_down_while_the_log_is_read(status: SourceStatus, clock: Clock):
    for _ in range(20):
        status.part_failed(SourcePart.STEPS, failed(Away.FAILED))
        clock.passed += 5
        status.answered()
        status.judge()
        assert status.database == "stale"
    assert status.lag_seconds == 100


def test_a_database_that_is_back_with_a_damaged_table_is_not_called_unreachable(status: SourceStatus, clock: Clock):
    status.failed(SourceUnavailable("MariaDB: refused", Away.UNREACHABLE))
    clock.passed += 5
    status.part_failed(SourcePart.LOG, failed(Away.FAILED, "log_events"))
    assert status.describe_database()["error"] == status.describe_tables()["error"]
    assert "unreachable" not in status.problem
