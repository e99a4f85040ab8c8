"""TLS connections over memory: what comes is read record by record, and records without data are bounded."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import select
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from correlator.sinks.mqtt.tls_socket import TlsSocket
from correlator.tls import RECORDS_WITHOUT_DATA, RecordContext, RecordReader, default_context
from tests.support.certificates import Certificates
from tests.support.eventually import PATIENCE
from tests.support.key_updates import KeyUpdater
from tests.support.yardstick import turns_of_another_task

TOO_MANY = f"more than {RECORDS_WITHOUT_DATA} TLS records without data"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates.create(tmp_path_factory.mktemp("certificates"))
    made.make("daemon", "IP:127.0.0.1")
    return made


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> RecordContext:
    context = default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.cert("daemon"), certificates.key("daemon"))
    return context


@pytest.fixture(scope="module")
def client(certificates: Certificates) -> RecordContext:
    return default_context(ca=certificates.ca)


class End:
    """One end of a connection. `pieces`: of how many bytes is what comes, in turn."""

    def __init__(self, context: ssl.SSLContext, pieces: Iterator[int], **options: object) -> None:
        self._incoming, self.outgoing, self._pieces = ssl.MemoryBIO(), ssl.MemoryBIO(), pieces
        self.tls = context.wrap_bio(self._incoming, self.outgoing, **options)  # type: ignore[arg-type]
        self.read = b""
        self.ended = False
        self._on_the_way = b""

    def send(self, other: End) -> None:
        other._on_the_way += self.outgoing.read()

    def receive(self, call: Callable[[], object]) -> bool:
        """Call until that needs nothing more, or nothing more is on the way. True: it needs nothing more."""
        while True:
            try:
                call()
            except ssl.SSLWantReadError:
                assert not self._incoming.pending, "what has come was not read"
            else:
                return True
            if not self._on_the_way:
                return False
            size = next(self._pieces)
            self._incoming.write(self._on_the_way[:size])
            self._on_the_way = self._on_the_way[size:]

    def read_all(self, size: int) -> None:
        while data := self.tls.read(size):
            self.read += data
        self.ended = True


def connected(left: End, right: End) -> None:
    done = [False, False]
    while not all(done):
        for n, (one, other) in enumerate(((left, right), (right, left))):
            done[n] = done[n] or one.receive(one.tls.do_handshake)
            one.send(other)


@given(
    sent=st.lists(st.binary(min_size=1, max_size=40_000), max_size=4),
    pieces=st.lists(st.integers(1, 5_000), min_size=1, max_size=5),
    size=st.integers(1, 20_000),
)
def test_whatever_is_sent_arrives_in_pieces_of_any_size_and_ends(server, client, sent, pieces, size):
    left = End(client, itertools.cycle(pieces), server_hostname="127.0.0.1")
    right = End(server, itertools.cycle(pieces), server_side=True)
    connected(left, right)
    for one, other in ((left, right), (right, left)):
        for data in sent:
            one.tls.write(data)
        one.send(other)
        other.receive(partial(other.read_all, size))
        assert other.read == b"".join(sent)
    assert not left.receive(left.tls.unwrap)
    left.send(right)
    assert right.receive(partial(right.read_all, size))
    assert right.ended
    right.receive(right.tls.unwrap)
    right.send(left)
    assert left.receive(left.tls.unwrap)


@contextlib.contextmanager
def attacked(server: RecordContext) -> Iterator[tuple[KeyUpdater, RecordReader, Callable[[], None]]]:
    """A client after its handshake, the server's end, and what lets the server have all that the client has sent."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = server.wrap_bio(incoming, outgoing, server_side=True)
    ours, theirs = socket.socketpair()
    theirs.settimeout(None)
    with ThreadPoolExecutor(1) as thread, ours, KeyUpdater(theirs) as client:
        connecting = thread.submit(client.connect)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                ours.sendall(outgoing.read())
                incoming.write(ours.recv(1 << 16))
        ours.sendall(outgoing.read())
        connecting.result(PATIENCE)

        def receive() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    incoming.write(ours.recv(1 << 16, socket.MSG_DONTWAIT))

        yield client, tls, receive


@pytest.mark.parametrize("end", ["read", "unwrap"])
def test_requests_for_new_keys_beyond_a_bound_end_the_connection(server, end):
    with attacked(server) as (client, tls, receive):
        for n in range(RECORDS_WITHOUT_DATA // 2):  # the handshake had some, too
            assert client.update()
            client.write(b"data %d" % n)
        receive()
        for n in range(RECORDS_WITHOUT_DATA // 2):
            assert tls.read() == b"data %d" % n
        for _ in range(RECORDS_WITHOUT_DATA // 2):
            client.update()
        receive()
        with pytest.raises(ssl.SSLError, match=TOO_MANY):
            tls.read() if end == "read" else tls.unwrap()


def test_no_server_chooses_a_group_for_the_key_exchange(tmp_path):
    """One of 10,000 bits takes a second. DHE needs a certificate of RSA."""
    rsa = "req -x509 -newkey rsa:2048 -nodes -subj /CN=rsa -keyout key.pem -out cert.pem"
    for command in (rsa, "genpkey -genparam -algorithm DH -pkeyopt group:ffdhe2048 -out group.pem"):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True, timeout=PATIENCE)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), default_context(ca=tmp_path / "cert.pem")
    server.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    server.load_dh_params(tmp_path / "group.pem")
    client.check_hostname = False

    def handshake(ciphers: str) -> None:
        server.set_ciphers(ciphers)
        whole = itertools.cycle([1 << 16])
        connected(End(client, whole), End(server, whole, server_side=True))

    handshake("ECDHE+AESGCM")
    with pytest.raises(ssl.SSLError, match=r"(?i)no.shared.cipher"):
        handshake("DHE+AESGCM")


class Trickle(socket.socket):
    """A broker that sends the begin of a long record, byte by byte."""

    sent = iter(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc\x03\x03" + bytes(1 << 14))

    def sendall(self, *_: object) -> None: ...

    def recv(self, *_: object) -> bytes:
        time.sleep(0.0005)
        return bytes([next(self.sent)])


def test_a_handshake_of_a_broker_that_sends_a_byte_at_a_time_keeps_its_deadline(client):
    with Trickle() as broker, pytest.raises(TimeoutError):
        TlsSocket(broker, client, "127.0.0.1").do_handshake(0.2)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_flood_of_requests_for_new_keys_takes_no_time_of_others(server, loop):
    def flood(port: int) -> None:
        with KeyUpdater(socket.create_connection(("127.0.0.1", port))) as client:
            client.connect()
            client.flood(2)

    async def run() -> float:
        ended: asyncio.Queue[BaseException | None] = asyncio.Queue()

        class Connection(asyncio.Protocol):
            def connection_lost(self, error: BaseException | None) -> None:
                ended.put_nowait(error)

        serving = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, ssl=server)
        async with serving, turns_of_another_task() as longest, asyncio.timeout(PATIENCE):
            port = serving.sockets[0].getsockname()[1]
            await asyncio.gather(*(asyncio.to_thread(flood, port) for _ in range(3)))
            for _ in range(3):
                assert TOO_MANY in str(await ended.get())
            return longest()

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(run()) < 0.1


def test_what_paho_sends_through_a_full_socket_arrives_once_and_in_order(server, client):
    ours, theirs = socket.socketpair()
    sent = [bytes([n]) * (1 + 9_999 * n) for n in range(40)]
    with ThreadPoolExecutor(1) as thread, ours, theirs:
        accepting = thread.submit(server.wrap_socket, theirs, server_side=True)
        tls = TlsSocket(ours, client, "127.0.0.1")
        tls.do_handshake(PATIENCE)
        tls.setblocking(False)
        with accepting.result(PATIENCE) as other:
            arriving = thread.submit(lambda: b"".join(iter(lambda: other.recv(5_000), b"")))
            waited = 0
            for data in sent:
                rest = data
                while rest:
                    try:
                        rest = rest[tls.send(rest) :]
                    except BlockingIOError:
                        waited += 1
                        select.select([], [tls], [], PATIENCE)
            ours.shutdown(socket.SHUT_WR)
            assert arriving.result(PATIENCE) == b"".join(sent)
            assert waited
