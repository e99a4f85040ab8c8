"""SHOW GRANTS, understood: what is missing, what is too much, and the statements that put it right."""

from __future__ import annotations

import pytest

from correlator.doctor.grants import read

TABLES = ("log_events", "job_tracking", "job_steps", "failover_jobs")
WHO = "`correlator`@`10.0.0.%`"
USAGE = f"GRANT USAGE ON *.* TO {WHO} IDENTIFIED BY PASSWORD '*94BDCEBE19083CE2A1F959FD02F964C7AF4CFC29' REQUIRE SSL"
FOUR = [f"GRANT SELECT ON `mig_oma`.`{table}` TO {WHO}" for table in TABLES]


def rights(*lines, also=()):
    return read([USAGE, *lines], "mig_oma", TABLES, also)


def test_select_on_the_four_tables_is_just_enough():
    found = rights(*FOUR)
    assert (found.missing, found.excess, found.revoke, found.grant) == ((), (), (), ())


def test_a_table_that_may_not_be_read_is_named():
    assert rights(*FOUR[1:]).missing == ("log_events",)
    assert rights().missing == TABLES


@pytest.mark.parametrize(
    "line",
    [
        f"GRANT SELECT ON *.* TO {WHO}",
        f"GRANT SELECT ON `mig_oma`.* TO {WHO}",
        rf"GRANT SELECT ON `mig\_oma`.* TO {WHO}",
        f"GRANT SELECT ON `mig%`.* TO {WHO}",
        f"GRANT ALL PRIVILEGES ON `mig_oma`.* TO {WHO}",
    ],
)
def test_what_is_granted_on_more_than_a_table_covers_the_table_and_is_too_much(line):
    found = rights(line)
    assert found.missing == ()
    assert len(found.excess) == 1
    assert list(found.grant) == [f"GRANT SELECT ON `mig_oma`.`{table}` TO {WHO};" for table in TABLES]


@pytest.mark.parametrize(
    "line", [f"GRANT SELECT ON `migroma`.`job_steps` TO {WHO}", rf"GRANT SELECT ON `mig\_om`.* TO {WHO}"]
)
def test_a_grant_on_another_database_is_not_ours(line):
    assert "job_steps" in rights(line).missing


def test_a_table_whose_name_looks_like_a_pattern_is_no_pattern():
    assert rights(f"GRANT SELECT ON `mig%`.`log_events` TO {WHO}").missing == TABLES


@pytest.mark.parametrize(
    ("line", "excess", "revoke"),
    [
        (
            f"GRANT SELECT, INSERT, UPDATE (`status`) ON `mig_oma`.`job_tracking` TO {WHO}",
            "INSERT, UPDATE (`status`) on mig_oma.job_tracking",
            f"REVOKE INSERT, UPDATE (`status`) ON `mig_oma`.`job_tracking` FROM {WHO};",
        ),
        (f"GRANT PROCESS ON *.* TO {WHO}", "PROCESS on *.*", f"REVOKE PROCESS ON *.* FROM {WHO};"),
        (
            f"GRANT SELECT ON `mig_oma`.`vm_disks` TO {WHO}",
            "SELECT on mig_oma.vm_disks",
            f"REVOKE SELECT ON `mig_oma`.`vm_disks` FROM {WHO};",
        ),
        (
            f"GRANT EXECUTE ON PROCEDURE `mysql`.`addgeometrycolumn` TO {WHO}",
            "EXECUTE on PROCEDURE mysql.addgeometrycolumn",
            f"REVOKE EXECUTE ON PROCEDURE `mysql`.`addgeometrycolumn` FROM {WHO};",
        ),
        (f"GRANT `reader` TO {WHO}", "the role `reader`", f"REVOKE `reader` FROM {WHO};"),
        (
            f"GRANT SELECT ON `mig_oma`.`job_steps` TO {WHO} WITH GRANT OPTION",
            "GRANT OPTION on mig_oma.job_steps",
            f"REVOKE GRANT OPTION ON `mig_oma`.`job_steps` FROM {WHO};",
        ),
    ],
)
def test_each_right_beyond_need_is_named_with_the_statement_that_takes_it_back(line, excess, revoke):
    found = rights(*FOUR, line)
    assert found.excess == (excess,)
    assert found.revoke == (revoke,)
    assert found.grant == ()


def test_rights_that_a_role_brings_count_as_rights_and_the_role_as_too_much():
    found = rights(
        f"GRANT `reader` TO {WHO}", "GRANT USAGE ON *.* TO `reader`", "GRANT SELECT ON `mig_oma`.* TO `reader`"
    )
    assert found.missing == ()
    assert found.excess == ("the role `reader`",)
    assert len(found.grant) == 4  # without the role, the account could read nothing


def test_a_global_right_that_the_configuration_needs_is_not_too_much():
    line = f"GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO {WHO}"
    assert rights(*FOUR, line, also=("REPLICATION SLAVE", "BINLOG MONITOR")).excess == ()
    assert rights(*FOUR, line).excess == ("REPLICATION SLAVE, BINLOG MONITOR on *.*",)


def test_the_hash_of_the_password_is_in_nothing_that_is_said():
    found = rights(f"GRANT SELECT, DELETE ON `mig_oma`.* TO {WHO}")
    assert "94BDCEBE" not in repr(found)
    assert found.account == WHO


def test_a_line_that_is_not_understood_does_no_harm():
    assert rights(*FOUR, "GRANT PROXY ON ``@`%` TO `root`@`localhost` WITH GRANT OPTION", "…").missing == ()
