"""JobLog's grammar: what rows and metadata say, and that nothing which stands in a row stops the reader."""

import json
import re
import string

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.jobs import fold, joblog
from correlator.jobs.lenient_json import MOST
from correlator.jobs.sizes import published_object
from correlator.model.document import MAX_STEP_ID
from correlator.model.facts import Entry, Job, Kind, Reading
from correlator.model.published import PublishedJob
from correlator.model.rows import JobRecord, LogRow
from tests.support.documents import document_of
from tests.support.there import there
from tests.support.yardstick import assert_costs

AT = 1_758_553_933_000_000
IDS = {"job_id": "j", "step_id": 7}
LIFECYCLE = [
    ("Job started", Kind.JOB_STARTED),
    ("Job completed", Kind.JOB_COMPLETED),
    ("Job failed", Kind.JOB_FAILED),
    ("Job cancelled", Kind.JOB_CANCELLED),
    ("Step started", Kind.STEP_STARTED),
    ("Step completed", Kind.STEP_COMPLETED),
    ("Step failed", Kind.STEP_FAILED),
    ("Step skipped", Kind.STEP_SKIPPED),
]


def row(message="hello", attrs=None, **columns):
    return LogRow(1, message, AT, attrs=json.dumps(attrs) if isinstance(attrs, dict) else attrs, **columns)


def read(message="hello", attrs=None, **columns) -> tuple[Entry, tuple[str, ...]]:
    return joblog.read(row(message, attrs, **columns), observed_at=3)


@pytest.mark.parametrize("case", [str, str.lower, str.upper, str.title, str.swapcase])
@pytest.mark.parametrize(("message", "kind"), LIFECYCLE)
def test_the_lifecycle_messages_are_known_in_any_case(message, kind, case):
    entry, bad = read(case(message), IDS)
    assert (entry.kind, entry.job_id, entry.step_id) == (kind, "j", 7 if kind.of_step else None)
    assert bad == ()
    assert entry.message == case(message)


@pytest.mark.parametrize(
    "message", ["Job started ", " Job failed", "Job  failed", "The Job failed", "Panic recovered in step", ""]
)
def test_any_other_message_is_a_plain_line(message):
    entry, bad = read(message, IDS)
    assert (entry.kind, entry.percent, bad) == (None, None, ())


@pytest.mark.parametrize(
    ("level", "kept"),
    [("WARN", "WARN"), ("WARNING", "WARN"), ("DEBUG", "DEBUG"), ("error ", "ERROR"), ("trace", "INFO")],
)
def test_a_level_is_one_of_four(level, kept):
    assert read(level=level)[0].level == kept


def test_identity_is_the_column_where_it_is_set():
    attrs = {"job_id": "attr", "step_id": 8, "external_job_id": "ext-attr"}
    entry, bad = read("Step failed", attrs, job_id="column", step_id=9, external_job_id="ext-column")
    assert (entry.job_id, entry.step_id, entry.external_ids) == ("column", 9, ("ext-column", "ext-attr"))
    assert bad == ()


def test_identity_is_in_attrs_where_the_column_is_null():
    attrs = {"job_id": "attr", "step_id": "8", "external_job_id": "one", "failover_job_id": "two", "gui_job_id": "one"}
    entry, bad = read("Step failed", attrs)
    assert (entry.job_id, entry.step_id, entry.external_ids) == ("attr", 8, ("one", "two"))
    assert bad == ()


def test_an_empty_column_counts_as_null():
    entry, _ = read("Job failed", {"job_id": "attr"}, job_id="", external_job_id="")
    assert (entry.job_id, entry.external_ids) == ("attr", ())


def test_external_ids_are_found_under_the_configured_keys_only():
    entry, _ = joblog.read(row(attrs={"external_job_id": "no", "ticket": "yes"}), 1, ["ticket"])
    assert entry.external_ids == ("yes",)


def test_a_started_job_says_what_it_is():
    attrs = {"job_id": "j", "job_type": "failover", "operation": "live", "owner": "system", "parent_job_id": "p"}
    entry, _ = read("Job started", attrs)
    assert (entry.job_type, entry.operation, entry.owner, entry.parent_job_id) == ("failover", "live", "system", "p")


def test_a_started_step_says_its_name_and_place():
    entry, _ = read("Step started", {**IDS, "step_name": "snapshot", "sequence": 4})
    assert (entry.step_name, entry.sequence) == ("snapshot", 4)


@pytest.mark.parametrize(
    ("error", "read_as"),
    [
        ("boom", "boom"),
        ("", None),
        (None, None),
        ({"code": 5}, '{"code":5}'),
        (["a"], '["a"]'),
        (3, "3"),
        (False, "false"),
    ],
)
def test_an_error_value_of_any_type_is_read(error, read_as):
    assert read("Job failed", {"job_id": "j", "error": error})[0].error == read_as


@pytest.mark.parametrize(("percent", "kept"), [(0, 0), (41, 41), (41.9, 41), (100, 100)])
def test_reported_progress_is_read(percent, kept):
    entry, bad = read("JOB progress updated", {"job_id": "j", "percent": percent})
    assert (entry.percent, entry.kind, bad) == (kept, None, ())


@pytest.mark.parametrize("percent", [-1, 101, "50", True, None, [], 1e30])
def test_progress_that_is_no_percentage_is_counted_and_left(percent):
    entry, bad = read("Job progress updated", {"job_id": "j", "percent": percent})
    assert (entry.percent, entry.job_id, bad) == (None, "j", ("percent_invalid",))


@pytest.mark.parametrize(
    ("attrs", "reason"),
    [
        ("{", "attrs_not_json"),
        ("{'job_id': 1}", "attrs_not_json"),
        ('{"job_id":"\\ud800"}', "job_id_invalid"),
        ('{"job_id":"\ud800"}', "job_id_invalid"),
        ('{"a":NaN}', "attrs_not_json"),
        ("\0", "attrs_not_json"),
        ("[" * 100_000, "attrs_not_json"),
        ("[]", "attrs_not_object"),
        ('"job_id"', "attrs_not_object"),
        ("1", "attrs_not_object"),
        ("true", "attrs_not_object"),
        (joblog.TOO_LONG, "attrs_too_long"),
        ('{"job_id":"j","x":"' + "x" * joblog.MAX_ATTRS + '"}', "attrs_too_long"),
        ('{"job_id":5}', "job_id_invalid"),
        ('{"job_id":true}', "job_id_invalid"),
        ('{"job_id":["j"]}', "job_id_invalid"),
        ('{"job_id":"' + "j" * 256 + '"}', "job_id_invalid"),
        ('{"external_job_id":{}}', "external_job_id_invalid"),
        ('{"failover_job_id":1}', "failover_job_id_invalid"),
        ('{"step_id":true}', "step_id_invalid"),
        ('{"step_id":false}', "step_id_invalid"),
        ('{"step_id":0}', "step_id_invalid"),
        ('{"step_id":-3}', "step_id_invalid"),
        ('{"step_id":1.5}', "step_id_invalid"),
        ('{"step_id":"x"}', "step_id_invalid"),
        ('{"step_id":"٣"}', "step_id_invalid"),
        ('{"step_id":9223372036854775808}', "step_id_invalid"),
        ('{"step_id":' + "9" * 400 + "}", "step_id_invalid"),
        ('{"step_id":"' + "9" * 5000 + '"}', "step_id_invalid"),
    ],
    ids=lambda value: value[:24].encode("ascii", "backslashreplace").decode().replace("\0", "NUL"),
)
def test_what_cannot_be_understood_is_a_plain_line_and_a_reason(attrs, reason):
    entry, bad = read("Hello\0there", attrs)
    assert bad == (reason,)
    assert (entry.kind, entry.message, entry.job_id, entry.step_id, entry.external_ids) == (
        None,
        "Hello\0there",
        None,
        None,
        (),
    )


@pytest.mark.parametrize("attrs", [None, "", "null", "{}", '{"job_id":null,"step_id":null}', '{"job_id":""}'])
def test_a_row_that_names_no_job_is_no_defect(attrs):
    entry, bad = read(attrs=attrs)
    assert (entry.job_id, entry.step_id, bad) == (None, None, ())


@pytest.mark.parametrize(
    ("message", "attrs"),
    [("Job failed", {"step_id": 3}), ("Step failed", {"job_id": "j"}), ("Step started", {"step_id": 3})],
)
def test_a_lifecycle_row_that_does_not_say_of_what_is_a_plain_line_with_a_reason(message, attrs):
    entry, bad = read(message, attrs)
    assert (entry.kind, entry.message, bad) == (None, message, ("lifecycle_without_id",))


def test_the_largest_step_id_of_the_column_is_read():
    assert read("Step failed", {"job_id": "j", "step_id": MAX_STEP_ID})[0].step_id == (1 << 63) - 1


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)
known_keys = st.sampled_from(
    ["job_id", "step_id", "percent", "error", "sequence", "step_name", "owner", *joblog.EXTERNAL_ID_KEYS]
)
objects = st.dictionaries(known_keys, values, max_size=6).map(json.dumps)
messages = st.sampled_from([m for m, _ in LIFECYCLE] + ["Job progress updated"]) | st.text()
anything = (
    st.text()
    | st.text(alphabet=st.characters(categories=["Cs", "Cc", "L"]))
    | st.text(alphabet='{}[]":,\\ud80 e1-.' + string.ascii_letters)
)


@given(
    messages,
    st.none() | objects | anything,
    st.text(max_size=8),
    st.none() | st.text(max_size=8),
    st.none() | st.integers(1, 1 << 62),
)
def test_no_row_raises_and_every_row_keeps_its_text(message, attrs, level, job_id, step_id):
    entry, bad = read(message, attrs, level=level, job_id=job_id, step_id=step_id)
    assert (entry.event_id, entry.message) == (1, message)
    assert entry.kind is None or entry.job_id
    assert entry.step_id is None or 0 < entry.step_id <= MAX_STEP_ID
    assert all(isinstance(reason, str) for reason in bad)
    if attrs:
        try:
            parsed = json.loads(attrs, parse_constant=lambda _: 1 / 0)
        except (ValueError, ZeroDivisionError):
            assert bad[:1] in [("attrs_not_json",), ("attrs_too_long",)]
        else:
            assert isinstance(parsed, dict) or parsed is None or bad[:1] == ("attrs_not_object",)


UNCARRIED = ['"k": 1e400', '"k": -1e400', '"k": [2, {"a": 1e999}]', '"k": "\\ud83d"', '"k": "cut \\udc00 off"']
"""Valid for MariaDB, and refused by parsers that keep to what a document can carry."""


@pytest.mark.parametrize("member", UNCARRIED)
def test_one_value_that_no_document_can_carry_loses_no_other_member(member):
    text = f'{{{member}, "vm_name": "web-1", "external_job_id": "gui-7", "job_id": "j", "n": 18446744073709551616}}'
    found = there(joblog.metadata_object(text))
    assert (found["vm_name"], found["n"]) == ("web-1", 2.0**64)
    assert orjson.loads(orjson.dumps(found)) == found
    assert joblog.external_ids(None, text) == ["gui-7"]
    entry, bad = read("Job failed", text)
    assert (entry.job_id, entry.external_ids, entry.kind, bad) == ("j", ("gui-7",), Kind.JOB_FAILED, ())
    shown = document_of(
        PublishedJob(fold.view(Job("j", reading=Reading("j", 1, JobRecord("j", metadata=text), ()))), 1, 0)
    )
    assert shown["metadata"]["vm_name"] == "web-1"


@pytest.mark.parametrize(("text", "value"), [("1e400", "1e400"), ("-1e400", "-1e400"), ('"\\ud83d!"', "\ufffd!")])
def test_a_number_that_is_too_large_is_its_text_and_half_a_character_a_replacement(text, value):
    assert joblog.metadata_object(f'{{"k": {text}}}') == {"k": value}


@pytest.mark.parametrize("unit", ["1", "1.5", '{"a":1}'])
def test_a_text_that_the_parser_refuses_is_read_in_a_few_times_the_time_of_another(unit):
    array = f'{{"a":[{(unit + ",") * (100_000 // len(unit))}1e999]}}'
    members = f'{{{"".join(f"{chr(34)}{n}{chr(34)}:{unit}," for n in range(10_000))}"_cut":1e999}}'

    def read() -> None:
        for text in (array, members):
            orjson.loads(text.replace("1e999", '"1e999"'))

    assert_costs(2, read, lambda: joblog.metadata_object(array))
    assert_costs(5, read, lambda: published_object(members))


def test_numbers_that_are_too_large_are_replaced_up_to_a_bound():
    text = f'{{"a":[{"1e999," * (MOST - 2)}-1e400], "s": "1e999"}}'
    assert joblog.metadata_object(text) == {"a": ["1e999"] * (MOST - 2) + ["-1e400"], "s": "1e999"}
    assert joblog.metadata_object(f'{{"a":[{"1e999," * MOST}1]}}') is None


@given(st.lists(st.sampled_from([r"\\", r"\ud83d", r"\ude00", r"\"", "ud83d", "a", "\ud800"]), max_size=8))
def test_halves_of_characters_are_replaced_wherever_they_stand_between_escapes(written):
    text = "".join(written)
    halves = re.compile("[\ud800-\udfff]")
    assert joblog.metadata_object(f'{{"k":"{text}"}}') == {"k": halves.sub("\ufffd", json.loads(f'"{text}"'))}


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_constant_of_another_language_is_no_json(constant):
    assert joblog.metadata_object(f'{{"k": {constant}}}') is None


def test_the_ids_of_a_record_are_the_columns_first_then_metadatas_by_key():
    metadata = json.dumps({"gui_job_id": "g", "failover_job_id": "f", "external_job_id": "e", "job_id": "no"})
    assert joblog.external_ids("f", metadata) == ["f", "e", "g"]
    assert joblog.external_ids(None, metadata, ["job_id"]) == ["no"]


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        "",
        "{",
        "[]",
        "null",
        '"x"',
        '{"external_job_id":5}',
        '{"external_job_id":""}',
        '{"external_job_id":"\\ud800"}',
    ],
)
def test_metadata_that_names_no_id_gives_none(metadata):
    assert joblog.external_ids(None, metadata) == []


@given(st.none() | anything, st.none() | objects | anything)
def test_no_metadata_raises(column, metadata):
    for found in joblog.external_ids(column, metadata):
        assert isinstance(found, str)
