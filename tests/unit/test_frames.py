"""The messages that a websocket client may send, and the frames around those that it gets (RFC 6455)."""

import json
import re
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.errors import BadRequest
from correlator.model.messages import MAX_IDS, CloseCode, Get, Hello, Ping, Subscribe, Unsubscribe
from correlator.sinks.http.frames import (
    MAX_BYTES_OF_UNKNOWN,
    MAX_ERROR,
    MAX_FRAMES_AT_ONCE,
    MAX_MESSAGES,
    MESSAGE_COST,
    UNCOUNTED,
    ClientFrames,
    Refusal,
    decode,
    split,
    text_frame,
)
from correlator.sinks.turns import Held
from tests.support.raw_http import frame


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"type":"hello","version":1}', Hello(1)),
        ('{"type":"hello","version":1,"token":"t","later":[1]}', Hello(1, "t")),
        ('{"type":"subscribe","id":0}', Subscribe(id=0)),
        (
            '{"type":"subscribe","id":1,"jobs":["a"],"status":["running"],"job_type":["x"],"context_id":["c"],"logs":"WARN","resume":true}',
            Subscribe(
                id=1, jobs=("a",), status=("running",), job_type=("x",), context_id=("c",), logs="WARN", resume=True
            ),
        ),
        ('{"type":"subscribe","id":1,"instance":["dc1"]}', Subscribe(id=1, instance=("dc1",))),
        ('{"type":"hello","version":1,"resume":{"epoch":"e","seq":1}}', Hello(1, resume={"epoch": "e", "seq": 1})),
        ('{"type":"hello","version":1,"resume":"odd"}', Hello(1, resume="odd")),
        ('{"type":"unsubscribe","id":1}', Unsubscribe(1)),
        ('{"type":"get","job_id":"any/id ✓"}', Get("any/id ✓")),
        ('{"type":"ping"}', Ping()),
    ],
)
def test_each_message_is_read_and_members_of_later_versions_are_left(text, said):
    assert messages(text) == messages(text.encode()) == [said]


def test_a_frame_may_hold_several_messages_in_order():
    assert messages(' [{"type":"ping"},{"type":"get","job_id":"j"}]') == [Ping(), Get("j")]
    assert messages("[]") == []


def test_a_frame_holds_a_bounded_number_of_messages():
    """None of a longer one is decoded, and the parser stops at the first beyond."""
    assert messages(json.dumps([{"type": "ping"}] * MAX_MESSAGES)) == [Ping()] * MAX_MESSAGES
    most = b"[" + b",".join([b"1"] * 32_000) + b"]"
    split(most[:1] + b"1]")  # what the first call makes once
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="at most 100 messages"):
            split(most)
        assert tracemalloc.get_traced_memory()[1] < 20_000, "of the parser, 32,000 objects are 2 MB"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "{}",
        '{"type":"hello"}',
        '{"type":"hello","version":"1"}',
        '{"type":"subscribe","id":-1}',
        '{"type":"subscribe","id":true}',
        '{"type":"subscribe","id":9007199254740992}',
        '{"type":"subscribe","id":1,"logs":"LOUD"}',
        '{"type":"subscribe","id":1,"status":["skipped"]}',
        '{"type":"subscribe","id":1,"jobs":[""]}',
        '{"type":"subscribe","id":1,"jobs":["' + "x" * 256 + '"]}',
        json.dumps({"type": "subscribe", "id": 1, "jobs": ["x"] * (MAX_IDS + 1)}),
        '{"type":"get","job_id":"\ud800"}',
        '[{"type":"ping"},1]',
        '{"type":"hello","version":1,"resume":' + "[" * 60_000,
    ],
    ids=lambda text: text[:40].encode("ascii", "backslashreplace").decode(),
)
def test_a_bad_frame_is_a_bad_request(text):
    assert wrong(text)


def messages(text):
    return [decode(raw) for raw in split(text)]


def wrong(text):
    """What is wrong with a frame."""
    try:
        messages(text)
    except BadRequest as error:
        return [error]
    return []


def test_what_is_wrong_with_a_message_is_named_with_what_is_known_and_is_short():
    (error,) = wrong('[{"type":"ping"},{"type":"shout"},{"type":"get","job_id":"j"}]')
    assert re.search(r"shout.*hello, subscribe, unsubscribe, get and ping", str(error))
    for text in ({"type": "x" * 60_000}, {"type": "subscribe", "id": 1, "status": ["x" * 60_000]}):
        (error,) = wrong(json.dumps(text))
        assert len(str(error)) < MAX_ERROR + 100


@pytest.mark.parametrize(
    ("text", "sub"),
    [('{"type":"subscribe","id":7,"status":["nonsense"]}', 7), ('{"type":"subscribe","id":"7"}', None), ("{", None)],
)
def test_a_refusal_names_the_subscription_where_it_can(text, sub):
    assert [error.sub for error in wrong(text)] == [sub]


@given(st.text(alphabet=st.characters()) | st.binary())
def test_no_frame_raises_anything_else(raw):
    if not wrong(raw):
        assert json.loads(raw) is not None


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65_535, b"\x81\x7e\xff\xff"),
        (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_a_text_frame_is_final_unmasked_and_says_its_length(size, header):
    assert text_frame(b"x" * size) == header + b"x" * size


class Parser:
    """Takes the place of aiohttp's."""

    def __init__(self) -> None:
        self.received = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.received += data
        return False, b""


def unbounded() -> Held:
    return Held("bytes", most=1 << 30, each=1 << 30)


def sent_in_pieces(frames: ClientFrames, sent: bytes, cuts: Iterable[int]) -> None:
    begin = 0
    for cut in [*sorted(cut % (len(sent) + 1) for cut in cuts), len(sent)]:
        if cut > begin:
            frames.feed_data(sent[begin:cut])
        begin = max(begin, cut)


SIZES = st.sampled_from([0, 1, 125, 126, 127, 300, 65_535, 65_536])
CUTS = st.lists(st.integers(0, 1 << 18), max_size=20)


@given(st.lists(SIZES, max_size=4), CUTS, st.booleans())
def test_masked_frames_are_passed_on_however_they_are_cut_and_an_unmasked_one_ends_that(sizes, cuts, is_wrong):
    refusals: list[Refusal] = []
    parser = Parser()
    frames = ClientFrames(parser)  # type: ignore[arg-type]
    frames.begin("a", unbounded(), unbounded(), refusals.append)
    frames.known()
    sent = b"".join(frame(b"x" * size, 2) for size in sizes)
    wrong = frame(b"x", mask=None) if is_wrong else b""
    sent_in_pieces(frames, sent + wrong, cuts)
    assert [refusal.code for refusal in refusals] == ([1002] if is_wrong else [])
    if is_wrong:
        assert (sent + wrong[:1]).startswith(parser.received), "no byte that shows that it is unmasked is passed on"
        frames.feed_data(frame(b"more"))
        assert len(refusals) == 1
    else:
        assert parser.received == sent


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 100_000)), max_size=30), st.integers(0, 30))
def test_what_unknown_clients_hold_is_bounded_and_given_back(clients, accepted):
    held = Held("bytes", most=200_000, each=150_000)
    refusals: list[Refusal] = []
    opened = []
    for address, size in clients:
        frames = ClientFrames(Parser())  # type: ignore[arg-type]
        before = len(refusals)
        frames.begin(address, held, unbounded(), refusals.append)
        is_full = len(refusals) > before
        frames.feed_data(b"\x81\xff" + (1 << 20).to_bytes(8, "big") + b"x" * size)
        if is_full or size > MAX_BYTES_OF_UNKNOWN:
            code = CloseCode.TRY_LATER if is_full else CloseCode.TOO_MANY
            assert [refusal.code for refusal in refusals[before:]] == [code]
        opened.append(frames)
    assert held.total < 200_000 + MAX_BYTES_OF_UNKNOWN
    assert {refusal.code for refusal in refusals} <= {CloseCode.TOO_MANY, CloseCode.TRY_LATER}
    for frames in opened[:accepted]:
        frames.known()
    for frames in opened:
        frames.end()
    assert held.total == 0


def test_what_comes_before_the_handshake_counts_and_a_known_client_may_send_on():
    refusals: list[Refusal] = []
    parser, held = Parser(), unbounded()
    frames = ClientFrames(parser)  # type: ignore[arg-type]
    part = frame(b"x" * 30_000, 2)
    frames.feed_data(part)
    frames.begin("a", held, unbounded(), refusals.append)
    assert held.total == len(part)
    frames.feed_data(part)
    frames.known()
    for _ in range(10):
        frames.feed_data(part)
    assert (parser.received, refusals, held.total) == (12 * part, [], 0)
    frames.feed_data(frame(b"", 9) * (MAX_FRAMES_AT_ONCE + 1))
    assert [refusal.code for refusal in refusals] == [CloseCode.TOO_MANY]


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 20_000), min_size=1, max_size=3), st.booleans()), max_size=8),
    CUTS,
    st.integers(0, 16),
    st.integers(0, 16),
)
def test_what_known_clients_send_counts_until_it_has_been_handled(sent, cuts, before, after):
    """Each message has parts, with a ping between them. Some are handled before the client is known, some after."""
    unknown, held, refusals = unbounded(), unbounded(), list[Refusal]()
    frames = ClientFrames(Parser())  # type: ignore[arg-type]
    frames.begin("a", unknown, held, refusals.append)
    frames_of_messages = [in_parts(parts, has_ping) for parts, has_ping in sent]
    sizes = [size for parts, has_ping in sent for size in ([3] if has_ping else []) + [sum(parts)]]
    frames.feed_data(b"".join(frames_of_messages[:1]))
    done = min(before, 1 + sent[0][1] if sent else 0)
    for size in sizes[:done]:
        frames.handled(size)
    frames.known()
    assert unknown.total == 0
    sent_in_pieces(frames, b"".join(frames_of_messages[1:]), cuts)
    for size in sizes[done : done + after]:
        frames.handled(size)
    left = sum(size + MESSAGE_COST for size in sizes[done + after :])
    assert (refusals, held.total) == ([], max(0, left - UNCOUNTED))
    frames.end()
    assert held.total == 0


def in_parts(parts: list[int], has_ping: bool) -> bytes:
    """One message in so many frames. A ping comes before the last of them."""
    made = [frame(b"x" * n, 0 if i else 2, final=i == len(parts) - 1) for i, n in enumerate(parts)]
    return b"".join([*made[:-1], frame(b"abc", 9) if has_ping else b"", made[-1]])


def test_a_known_client_is_refused_above_its_part_and_one_that_sends_little_is_not():
    held, refusals = Held("bytes", most=1 << 30, each=100_000), list[Refusal]()
    for size, code in ((60_000, None), (60_000, None), (60_000, CloseCode.TRY_LATER), (100, None)):
        frames = ClientFrames(Parser())  # type: ignore[arg-type]
        frames.begin("a", unbounded(), held, refusals.append)
        frames.known()
        frames.feed_data(frame(b"x" * size))
        assert [refusal.code for refusal in refusals] == ([code] if code else [])
        refusals.clear()


def test_a_refusal_before_the_handshake_is_answered_is_reported_when_it_is():
    refusals: list[Refusal] = []
    frames = ClientFrames(Parser())  # type: ignore[arg-type]
    frames.feed_data(b"x" * (MAX_BYTES_OF_UNKNOWN + 1))
    frames.begin("a", Held("bytes", most=1, each=1), unbounded(), refusals.append)
    assert [refusal.code for refusal in refusals] == [CloseCode.TOO_MANY]
