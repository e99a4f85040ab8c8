"""SHOW GRANTS, understood: what is missing, what is too much, and the statements that put it right."""

from __future__ import annotations

import pytest

from correlator.doctor.database import read_grants

TABLES = ("log_events", "job_tracking", "job_steps", "failover_jobs")
USER = "`correlator`@`10.0.0.%`"
USAGE = f"GRANT USAGE ON *.* TO {USER} IDENTIFIED BY PASSWORD '*94BDCEBE19083CE2A1F959FD02F964C7AF4CFC29' REQUIRE SSL"
FOUR = [f"GRANT SELECT ON `mig_oma`.`{table}` TO {USER}" for table in TABLES]


def rights(*lines, also=()):
    return read_grants([USAGE, *lines], "mig_oma", TABLES, also)


def test_select_on_the_four_tables_is_just_enough():
    found = rights(*FOUR)
    assert (found.missing, found.excess, found.revoke, found.grant) == ((), (), (), ())


def test_a_table_that_may_not_be_read_is_named():
    assert rights(*FOUR[1:]).missing == ("log_events",)
    assert rights().missing == TABLES


@pytest.mark.parametrize(
    "line",
    [
        f"GRANT SELECT ON *.* TO {USER}",
        f"GRANT SELECT ON `mig_oma`.* TO {USER}",
        rf"GRANT SELECT ON `mig\_oma`.* TO {USER}",
        f"GRANT SELECT ON `mig%`.* TO {USER}",
        f"GRANT ALL PRIVILEGES ON `mig_oma`.* TO {USER}",
    ],
)
def test_what_is_granted_on_more_than_a_table_covers_the_table_and_is_too_much(line):
    found = rights(line)
    assert found.missing == ()
    assert len(found.excess) == 1
    assert list(found.grant) == [f"GRANT SELECT ON `mig_oma`.`{table}` TO {USER};" for table in TABLES]


@pytest.mark.parametrize(
    "line", [f"GRANT SELECT ON `migroma`.`job_steps` TO {USER}", rf"GRANT SELECT ON `mig\_om`.* TO {USER}"]
)
def test_a_grant_on_another_database_does_not_count(line):
    assert "job_steps" in rights(line).missing


@pytest.mark.parametrize("what", ["`other`.`job_steps`", "`other`.*"])
def test_what_the_account_reads_of_another_database_is_not_revoked(what):
    own = [f"GRANT SELECT ON `mig_oma`.`{table}` TO {USER}" for table in TABLES]
    found = rights(*own, f"GRANT SELECT ON {what} TO {USER}")
    assert (found.missing, found.excess, found.revoke) == ((), (), ())
    assert rights(*own, f"GRANT SELECT, INSERT ON {what} TO {USER}").revoke == (
        f"REVOKE INSERT ON {what} FROM {USER};",
    )


def test_a_table_name_with_wildcard_characters_is_no_pattern():
    assert rights(f"GRANT SELECT ON `mig%`.`log_events` TO {USER}").missing == TABLES


@pytest.mark.parametrize(
    ("line", "excess", "revoke"),
    [
        (
            f"GRANT SELECT, INSERT, UPDATE (`status`) ON `mig_oma`.`job_tracking` TO {USER}",
            "INSERT, UPDATE (`status`) on mig_oma.job_tracking",
            f"REVOKE INSERT, UPDATE (`status`) ON `mig_oma`.`job_tracking` FROM {USER};",
        ),
        (f"GRANT PROCESS ON *.* TO {USER}", "PROCESS on *.*", f"REVOKE PROCESS ON *.* FROM {USER};"),
        (
            f"GRANT SELECT ON `mig_oma`.`vm_disks` TO {USER}",
            "SELECT on mig_oma.vm_disks",
            f"REVOKE SELECT ON `mig_oma`.`vm_disks` FROM {USER};",
        ),
        (
            f"GRANT EXECUTE ON PROCEDURE `mysql`.`addgeometrycolumn` TO {USER}",
            "EXECUTE on PROCEDURE mysql.addgeometrycolumn",
            f"REVOKE EXECUTE ON PROCEDURE `mysql`.`addgeometrycolumn` FROM {USER};",
        ),
        (f"GRANT `reader` TO {USER}", "the role `reader`", f"REVOKE `reader` FROM {USER};"),
        (
            f"GRANT SELECT ON `mig_oma`.`job_steps` TO {USER} WITH GRANT OPTION",
            "GRANT OPTION on mig_oma.job_steps",
            f"REVOKE GRANT OPTION ON `mig_oma`.`job_steps` FROM {USER};",
        ),
    ],
)
def test_each_unneeded_right_is_named_with_the_statement_that_revokes_it(line, excess, revoke):
    found = rights(*FOUR, line)
    assert found.excess == (excess,)
    assert found.revoke == (revoke,)
    assert found.grant == ()


def test_rights_that_a_role_brings_count_as_rights_and_the_role_as_too_much():
    found = rights(
        f"GRANT `reader` TO {USER}", "GRANT USAGE ON *.* TO `reader`", "GRANT SELECT ON `mig_oma`.* TO `reader`"
    )
    assert found.missing == ()
    assert found.excess == ("the role `reader`",)
    assert len(found.grant) == 4  # without the role, the account could read nothing


def test_a_global_right_that_the_configuration_needs_is_not_too_much():
    line = f"GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO {USER}"
    assert rights(*FOUR, line, also=("REPLICATION SLAVE", "BINLOG MONITOR")).excess == ()
    assert rights(*FOUR, line).excess == ("REPLICATION SLAVE, BINLOG MONITOR on *.*",)


def test_the_hash_of_the_password_is_in_no_output():
    found = rights(f"GRANT SELECT, DELETE ON `mig_oma`.* TO {USER}")
    assert "94BDCEBE" not in repr(found)
    assert found.account == USER


def test_a_line_that_is_not_understood_does_no_harm():
    assert rights(*FOUR, "GRANT PROXY ON ``@`%` TO `root`@`localhost` WITH GRANT OPTION", "…").missing == ()
