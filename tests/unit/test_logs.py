"""Log lines: one a record in every format, and no text from outside can forge one."""

import io
import json
import logging
import os
import re

import orjson
import pytest

from correlator.ops.logs import MAX_LINES, MAX_TEXT, configure, escape

HOSTILE = (
    "job \x1b[31mred\x07\n<0>forged: line\r2025-01-01T00:00:00.000000Z INFO x: y\u2028\u202e\x9b\x7f\ud800 \x00end"
)
STYLES = ["text", "json", "journal"]


pytestmark = pytest.mark.usefixtures("log_as_before")


@pytest.fixture
def lines():
    """Log with a style through `write`; the lines that came out."""

    def lines(style, write, level="debug"):
        stream = io.StringIO()
        configure(level, style, {}, stream)
        write(logging.getLogger("correlator.test"))
        assert stream.getvalue().endswith("\n")
        return stream.getvalue()[:-1].split("\n")

    return lines


def fail(message):
    return lambda log: log.error("failed", exc_info=ValueError(message))


def test_text_is_time_level_logger_message_and_fields(lines):
    fields = {"rows": 812, "id": 'a "b" c', "none": ""}
    (line,) = lines("text", lambda log: (log.debug("quiet"), log.info("caught %s", "up", extra=fields)), level="info")
    assert re.fullmatch(
        r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z INFO correlator\.test: caught up rows=812 id="a \\"b\\" c" none=""',
        line,
    )


def test_json_is_one_object_with_the_fields_as_members(lines):
    fields = {"rows": 812, "ids": {"a": [1]}, "level": "forged", "logger": "forged"}
    (line,) = lines("json", lambda log: log.warning("caught %s", "up", extra=fields))
    record = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record.pop("ts"))
    assert record == {
        "level": "warning", "logger": "correlator.test", "message": "caught up", "rows": 812, "ids": {"a": [1]},
    }  # fmt: skip
    (line,) = lines("json", fail("why"))
    assert json.loads(line)["exception"].splitlines()[-1] == "ValueError: why"


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_the_journal_gets_the_syslog_priority(lines, level, priority):
    (line,) = lines("journal", lambda log: log.log(level, "caught up", extra={"rows": 812}))
    assert line == f"<{priority}>correlator.test: caught up rows=812"


@pytest.mark.parametrize("style", STYLES)
def test_hostile_text_stays_on_its_line_without_control_characters(lines, style):
    (line,) = lines(style, lambda log: log.getChild(HOSTILE).info(HOSTILE, extra={"id": HOSTILE, HOSTILE: 1}))
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u202e\ud800]", line)
    assert "forged" in line
    line.encode()


@pytest.mark.parametrize(("style", "begin"), [("text", "| "), ("journal", "<3>| ")])
def test_a_traceback_cannot_pass_for_a_line_of_its_own(lines, style, begin):
    first, *rest = lines(style, fail(HOSTILE))
    assert first.endswith("correlator.test: failed")
    assert "ValueError" in "".join(rest)
    assert all(line.startswith(begin) and escape(line) == line for line in rest)


def test_json_log_lines_accept_what_orjson_refuses(lines):
    odd = {"big": 2**70, "text": "\ud800", "odd": object, "map": {1: 2}}
    (line,) = lines("json", lambda log: log.info("x", extra=odd))
    assert json.loads(line)["big"] == 2**70
    with pytest.raises(orjson.JSONEncodeError):
        orjson.dumps("\ud800")


def test_configuring_again_replaces_the_output_which_is_standard_error(capsys):
    configure("info", "auto", {}, None)
    logging.getLogger("x").info("here")
    assert "INFO x: here" in capsys.readouterr().err
    before, after = io.StringIO(), io.StringIO()
    configure("info", "text", {}, before)
    configure("info", "text", {}, after)
    logging.getLogger("x").info("here")
    assert (before.getvalue(), "here" in after.getvalue()) == ("", True)


@pytest.mark.parametrize("ours", [True, False])
def test_auto_is_the_journals_format_only_on_the_journals_own_stream(tmp_path, ours):
    with (tmp_path / "stream").open("w+") as stream:
        status = os.fstat(stream.fileno())
        inode = status.st_ino if ours else status.st_ino + 1
        configure("info", "auto", {"JOURNAL_STREAM": f"{status.st_dev}:{inode}"}, stream)
        logging.getLogger("x").info("here")
        stream.seek(0)
        assert stream.read().startswith("<6>x: here") is ours


@pytest.mark.parametrize("style", STYLES)
def test_no_text_makes_a_line_longer_than_its_bound(lines, style):
    long = "\x1b\n" * 1_000_000

    def write(log):
        log.error("%s", long, extra={"field": long}, exc_info=ValueError(long))

    assert sum(map(len, lines(style, write))) < 6 * (2 * MAX_TEXT + MAX_LINES * 100)
