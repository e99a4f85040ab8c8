"""What docs/operations.md tells an operator to type can be typed: our commands, addresses, statements."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from correlator.cli import main
from tests.daemon import Daemon
from tests.servers import MariaDB

TEXT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
TYPED = sorted(
    {line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()}
    | set(re.findall(r"`([a-z]+ [^`]*)`", TEXT))
)
OURS = [line for line in TYPED if line.startswith("correlator ")]
ADDRESSES = sorted({m for line in TYPED for m in re.findall(r"http://127\.0\.0\.1:8686(\S+)", line)})


@pytest.mark.parametrize("line", OURS)
def test_every_command_of_ours_is_one_with_these_options(line):
    arguments = shlex.split(line, comments=True)[1:]
    ended = CliRunner().invoke(main, [*arguments, "--help"], prog_name="correlator")
    assert ended.exit_code == 0, ended.output
    assert ended.output.startswith(f"Usage: correlator {arguments[0]} ")


async def test_every_address_answers(database, tmp_path):
    assert {"/health/live", "/health/ready", "/metrics"} <= set(ADDRESSES)
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        assert daemon.session is not None
        for path in ADDRESSES:
            async with daemon.session.get(path) as response:
                assert response.status == 200, path
    finally:
        await daemon.close()


async def test_every_statement_is_one_of_mariadb(mariadb: MariaDB):
    statements = [block for kind, block in BLOCKS if kind == "sql"]
    assert statements
    async with mariadb.connect() as connection, connection.cursor() as cursor:
        for statement in statements:
            await cursor.execute(statement)
            await cursor.fetchall()
