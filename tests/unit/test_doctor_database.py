"""What is said of the database: each thing as it should be, and the failure that the check exists for."""

from __future__ import annotations

import asyncio

import pytest

from correlator.config.loading import load
from correlator.doctor import database
from correlator.doctor.database import read_grants
from correlator.doctor.report import guarded
from correlator.doctor.service import Setting
from correlator.errors import SourceUnavailable
from correlator.sources.db import zones
from correlator.sources.db.session import OLDER_GENERATION, TABLES, Schema

NOW = 1_758_553_933.0  # 22 September 2025: summer time


def config(**settings):
    given = {"database__url": "mysql://correlator@10.0.0.5/mig_oma"} | settings
    return load(None, {"HOME": "/tmp"} | {f"CORRELATOR_{k.upper()}": v for k, v in given.items()})


def setting(**settings):
    return Setting(config(**settings), None, {})


def schema(*without):
    return Schema({t: {c: "text" for c in columns if f"{t}.{c}" not in without} for t, columns in TABLES.items()})


@pytest.mark.parametrize(
    ("code", "words", "fix"),
    [
        (1045, "Access denied for user 'correlator'@'10.0.0.9' (using password: NO) (1045)", "'correlator'@'10.0.0.9'"),
        (
            1044,
            "Access denied for user 'correlator'@'10.%' to database 'mig_oma' (1044)",
            "GRANT SELECT ON `mig_oma`.`log_events` TO 'correlator'@'10.%';",
        ),
        (1049, "Unknown database 'mig_oma' (1049)", "SHOW DATABASES;"),
        (1226, "User 'correlator' has exceeded the 'max_user_connections' resource (1226)", "MAX_USER_CONNECTIONS"),
        (None, "database.tls is set, but the server offers no TLS", "have_ssl"),
        (
            2003,
            "Can't connect: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (2003)",
            "openssl s_client -starttls mysql -connect 10.0.0.5:3306",
        ),
        (2003, "Can't connect to MySQL server on '10.0.0.5' (2003)", "nc -vz 10.0.0.5 3306"),
    ],
)
def test_each_refusal_of_the_login_has_its_own_fix(code, words, fix):
    check = database.refused(setting(), words, code)
    assert check.status == "failure"
    assert check.summary == words
    assert any(fix in line for line in check.fix), check.fix
    local = setting(database__url="mysql://correlator@127.0.0.1/mig_oma")
    fixes = database.refused(local, "no connection within 5 s", None).fix
    assert fixes == ("systemctl start mariadb", "systemctl status mariadb")


SS = """\
u_str LISTEN 0 80 /run/mysqld/mysqld.sock 21 * 0 users:(("mariadbd",pid=7,fd=30))
u_str LISTEN 0 80 /run/other 22 * 0 users:(("systemd",pid=1,fd=30))
"""
SIX = 'tcp LISTEN 0 80 [::1]:3306 [::]:* users:(("mariadbd",pid=7,fd=20))'
TWO = 'tcp LISTEN 0 80 0.0.0.0:3307 0.0.0.0:* users:(("mysqld",pid=8,fd=20))'


@pytest.mark.parametrize(
    ("listening", "fix", "says"),
    [
        ("", "systemctl start mariadb", ""),
        (
            SS,
            'database.unix_socket = "/run/mysqld/mysqld.sock"',
            "listens at /run/mysqld/mysqld.sock, not at",
        ),
        (SS + SIX, 'database.url = "mysql://correlator@[::1]:3306/mig_oma"', "listens at [::1]:3306, /run/mysqld"),
        (SS + SIX + "\n" + TWO, "ss -lxtnp", "decide which of 2 servers"),
    ],
)
def test_a_server_that_listens_elsewhere_is_not_started_again(listening, fix, says):
    local = setting(database__url="mysql://correlator@127.0.0.1/mig_oma")
    words = "MariaDB at x: Can't connect to MySQL server (2003): [Errno 111] Connect call failed, refused"
    check = database.refused(local, words, 2003, database.read_listening(listening.splitlines()))
    assert check.fix[0] == fix
    assert says in " ".join(check.detail)


def test_an_ipv6_address_is_written_as_each_program_takes_it():
    there = setting(database__url="mysql://correlator@[2001:db8::1]:3310/mig_oma")
    assert database.refused(there, "broke", 2013).fix == ("nc -vz 2001:db8::1 3310",)
    words = "Can't connect: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (2003)"
    assert "-connect [2001:db8::1]:3310 " in database.refused(there, words, 2003).fix[0]


def test_an_account_that_may_have_too_few_connections_is_named_with_the_fix():
    few = database.judge_connections(4, "'correlator'@'10.%'")
    assert (few.status, few.fix) == ("warning", ("ALTER USER 'correlator'@'10.%' WITH MAX_USER_CONNECTIONS 24;",))
    assert few.summary.endswith(
        "4 connections to the database at once (max_user_connections), and the correlator needs 9: "
        "requests are refused, or tables are not read, while none is left"
    )
    assert [database.judge_connections(n, "x").status for n in (0, 8, 9, 24)] == ["ok", "warning", "ok", "ok"]


@pytest.mark.parametrize(
    ("settings", "used", "status"),
    [
        ({}, "", "warning"),
        ({"database__url": "mysql://u@127.0.0.1/d"}, "", "ok"),
        ({"database__unix_socket": "/run/mysqld/mysqld.sock"}, "", "ok"),
        ({"database__tls__verify": "true"}, "TLSv1.3 TLS_AES_256_GCM_SHA384", "ok"),
        ({"database__tls__verify": "false"}, "TLSv1.3 TLS_AES_256_GCM_SHA384", "warning"),
    ],
)
def test_a_connection_in_the_clear_is_warned_of_where_it_leaves_this_host(settings, used, status):
    assert database.judge_encryption(config(**settings), used).status == status


def test_rights_are_judged_by_what_is_followed():
    user = "`correlator`@`%`"

    def judged(*grants, **settings):
        held = config(**settings)
        lines = [f"GRANT USAGE ON *.* TO {user}", *grants]
        also = ("REPLICATION SLAVE", "REPLICA MONITOR") if held.database.doorbell else ("REPLICA MONITOR",)
        found = database.judge_rights(held, database.read_grants(lines, "mig_oma", TABLES, also))
        return found.status, found.fix

    four = [f"GRANT SELECT ON `mig_oma`.`{t}` TO {user}" for t in TABLES]
    slave = f"GRANT REPLICATION SLAVE ON *.* TO {user}"
    missing = f"GRANT SELECT ON `mig_oma`.`failover_jobs` TO {user};"
    assert judged(*four[:3]) == ("failure", (missing,))
    assert judged(*four[:3], jobs__legacy="false") == judged(*four) == ("ok", ())
    assert judged(*four, f"GRANT SELECT, DELETE ON `mig_oma`.* TO {user}")[0] == "warning"
    assert judged(*four, database__doorbell="true") == ("warning", (f"{slave};",))
    assert judged(*four, slave, database__doorbell="true") == ("ok", ())
    assert judged(*four, slave)[0] == "warning"
    some = f"GRANT SELECT (`id`, `message`, `ts`, `level`) ON `mig_oma`.`log_events` TO {user}"
    assert judged(some, *(one for one in four if "log_events" not in one)) == (
        "warning", (f"GRANT SELECT ON `mig_oma`.`log_events` TO {user};",)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("without", "status", "named"),
    [
        ((), "ok", "current"),
        (tuple(OLDER_GENERATION), "ok", "older generation"),
        (("job_tracking.metadata",), "warning", "job_tracking.metadata"),
        (tuple(f"job_steps.{c}" for c in TABLES["job_steps"]), "warning", "job_steps"),
        (("log_events.ts",), "failure", "log_events"),
    ],
)
def test_what_the_schema_lacks_is_named(without, status, named):
    check = database.judge_schema(schema(*without), legacy=True)
    assert (check.status, named in check.summary) == (status, True), check
    not_followed = [f"failover_jobs.{c}" for c in TABLES["failover_jobs"]]
    assert database.judge_schema(schema(*not_followed), legacy=True).status == "warning"
    assert database.judge_schema(schema(*not_followed), legacy=False).status == "ok"


def test_what_does_not_exist_and_what_is_not_granted_are_told_apart():
    user = "`correlator`@`%`"
    grants = [f"GRANT USAGE ON *.* TO {user}", f"GRANT SELECT ON `mig_oma`.`log_events` TO {user}"]
    granted = database.read_grants(grants, "mig_oma", TABLES)
    without = [f"job_steps.{c}" for c in TABLES["job_steps"]]
    check = database.judge_schema(schema(*without, "log_events.attrs"), legacy=True, granted=granted)
    assert check.summary == "not granted: job_steps; do not exist: log_events.attrs"
    assert any("wait up to 60 s" in line for line in check.detail)
    assert any("Somebody has to decide" in line for line in check.detail)
    assert check.fix == ("SHOW CREATE TABLE log_events;",)


BERLIN = zones.named("Europe/Berlin")


@pytest.mark.parametrize(
    ("zone", "offset", "errors", "status", "says"),
    [
        (BERLIN, 7200, [0.4, 1.2, 0.9], "ok", "UTC+02:00"),
        (BERLIN, 0, [0.4, 1.2, 30.0], "ok", "UTC+02:00"),  # the jobs prove it, whatever the server's zone
        (BERLIN, 0, [], "warning", "no job shows"),
        (BERLIN, 0, [-7199.8, -7198.0, -7140.1], "failure", "wrong by 2 h: DATETIME columns are at UTC+00:00"),
        (zones.fixed(0), 0, [19800.3, 19801.0], "failure", "wrong by 5.5 h: DATETIME columns are at UTC+05:30"),
        (zones.fixed(-12600), -12600, [0.0], "ok", "UTC-03:30"),
        (BERLIN, 7200, [0.4, 3600.2, 500.0], "ok", "UTC+02:00"),  # one job that waited for an hour
        (BERLIN, 7200, [400.0, 1300.0], "ok", "UTC+02:00"),  # first steps without information
        (BERLIN, 7200, [0.4] * 24 + [7200.5] * 26, "ok", "UTC+02:00"),  # the newest decide
        (zones.fixed(0), 0, [7200.5] * 24 + [0.4] * 26, "failure", "DATETIME columns are at UTC+02:00"),
    ],
)
def test_a_wrong_zone_shows_in_the_first_steps_of_jobs(zone, offset, errors, status, says):
    check = database.judge_zone("auto", zone, offset, errors, NOW)
    assert (check.status, says in check.summary) == (status, True), check
    assert status != "ok" or ("daylight saving" in "".join(check.detail)) is (zone is not BERLIN)


def test_the_jobs_that_agree_on_a_wrong_zone_are_counted():
    check = database.judge_zone("UTC", zones.fixed(0), 0, [7200.5] * 24 + [0.4] * 20 + [400.0] * 6, NOW)
    assert check.detail[0].startswith("Shown by 24 of 44 recent jobs, the newest among them")
    check = database.judge_zone("UTC", zones.fixed(0), 0, [0.4] * 24 + [7200.5] * 20, NOW)
    assert check.detail == ("24 of 44 recent jobs agree, the newest among them",)


@pytest.mark.parametrize(
    ("host", "proposed"),
    [("Europe/Berlin", "Europe/Berlin"), ("Europe/London", "Etc/GMT-2"), ("", "Etc/GMT-2")],
)
def test_for_a_wrong_zone_that_of_the_host_is_proposed_where_it_fits(host, proposed):
    summer = 1_758_553_933
    check = database.judge_zone("UTC", zones.fixed(0), 0, [7201.0] * 5, summer, host=host)
    assert (check.status, check.fix) == ("failure", (f'database.timezone = "{proposed}"',))


@pytest.mark.parametrize(
    ("ahead", "took", "status"),
    [
        (-1.9, 0.001, "ok"),
        (2.1, 0.001, "warning"),
        (-30.0, 0.1, "warning"),
        (61.0, 0.1, "failure"),
        (2.4, 1.0, "ok"),
    ],
)
def test_clocks_that_differ_are_noted_and_then_wrong(ahead, took, status):
    check = database.judge_clock(ahead, took)
    assert check.status == status
    assert bool(check.fix) == (status != "ok")


async def test_a_check_that_hangs_or_raises_is_one_failed_check():
    async def hangs():
        await asyncio.sleep(60)

    async def breaks():
        raise KeyError("surprise")

    async def away():
        raise SourceUnavailable("MariaDB: gone")

    found = [await guarded("x", work(), 0.02) for work in (hangs, breaks, away)]
    assert [check.status for check in found] == ["failure"] * 3
    assert "within 0.02 s" in found[0].summary
    assert "KeyError" in found[1].summary
    assert "MariaDB: gone" in found[2].summary


# -- SHOW GRANTS, understood: what is missing, what is too much, and the statements that put it right


NAMED = ("log_events", "job_tracking", "job_steps", "failover_jobs")
USER = "`correlator`@`10.0.0.%`"
USAGE = f"GRANT USAGE ON *.* TO {USER} IDENTIFIED BY PASSWORD '*94BDCEBE19083CE2A1F959FD02F964C7AF4CFC29' REQUIRE SSL"
FOUR = [f"GRANT SELECT ON `mig_oma`.`{table}` TO {USER}" for table in NAMED]


def rights(*lines, also=()):
    return read_grants([USAGE, *lines], "mig_oma", NAMED, also)


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
    assert list(found.grant) == [f"GRANT SELECT ON `mig_oma`.`{table}` TO {USER};" for table in NAMED]
    assert "94BDCEBE" not in repr(found), "the hash of the password"


def test_select_on_each_table_is_just_enough_and_one_elsewhere_counts_as_nothing():
    found = rights(*FOUR, "GRANT PROXY ON ``@`%` TO `root`@`localhost` WITH GRANT OPTION", "…")
    assert (found.account, found.missing, found.excess, found.revoke, found.grant) == (USER, (), (), (), ())
    assert rights(*FOUR[1:]).missing == ("log_events",)
    for elsewhere in (
        f"GRANT SELECT ON `migroma`.`log_events` TO {USER}",
        rf"GRANT SELECT ON `mig\_om`.* TO {USER}",
        f"GRANT SELECT ON `mig%`.`log_events` TO {USER}",  # the name of a table makes no pattern
    ):
        assert "log_events" in rights(elsewhere).missing
    for what in ("`other`.`job_steps`", "`other`.*"):
        assert rights(*FOUR, f"GRANT SELECT ON {what} TO {USER}").excess == ()
        revoke = (f"REVOKE INSERT ON {what} FROM {USER};",)
        assert rights(*FOUR, f"GRANT SELECT, INSERT ON {what} TO {USER}").revoke == revoke


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
