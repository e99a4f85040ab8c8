"""The commands, addresses and statements in docs/operations.md work."""

import re
import shlex

import pytest
from click.testing import CliRunner

from correlator.cli import main
from tests.support.daemon import Daemon
from tests.support.mariadb import MariaDB
from tests.support.markdown import backticks, blocks

DOCUMENT = "docs/operations.md"
TYPED = sorted(
    {line for block in blocks(DOCUMENT) if block.language == "sh" for line in block.text.splitlines()}
    | {text for _, text in backticks(DOCUMENT) if re.match("[a-z]+ ", text)}
)
OURS = [line for line in TYPED if line.startswith("correlator ")]
ADDRESSES = sorted({m for line in TYPED for m in re.findall(r"http://127\.0\.0\.1:8686(\S+)", line)})


@pytest.mark.parametrize("line", OURS)
def test_every_correlator_command_exists_with_these_options(line):
    arguments = shlex.split(line, comments=True)[1:]
    ended = CliRunner().invoke(main, [*arguments, "--help"], prog_name="correlator")
    assert ended.exit_code == 0, ended.output
    assert ended.output.startswith(f"Usage: correlator {arguments[0]} ")


async def test_every_address_answers(database, tmp_path):
    assert {"/health/live", "/health/ready", "/metrics"} <= set(ADDRESSES)
    async with Daemon(tmp_path, database__url=database.url) as daemon:
        assert daemon.session is not None
        for path in ADDRESSES:
            async with daemon.session.get(path) as response:
                assert response.status == 200, path


async def test_every_statement_is_one_of_mariadb(mariadb: MariaDB):
    statements = [block.text for block in blocks(DOCUMENT) if block.language == "sql"]
    assert statements
    async with mariadb.connect() as connection, connection.cursor() as cursor:
        for statement in statements:
            await cursor.execute(statement)
            await cursor.fetchall()
