"""With a `tls://` address nothing is sent to a NATS server that offers no TLS, whoever took the offer out."""

from __future__ import annotations

import asyncio
import json

from correlator.cluster.connection import Connection
from correlator.config.schema import Cluster, NatsUrl
from tests.support.accepting import accepting
from tests.support.background import in_background
from tests.support.eventually import eventually
from tests.support.servers import free_port

INFO = {"server_id": "x", "version": "2.15.0", "max_payload": 1_048_576, "nonce": "n", "headers": True}


async def test_a_server_that_offers_no_tls_gets_nothing():
    received: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"INFO {json.dumps(INFO)}\r\n".encode())
        received.append(await reader.read(1000))

    port = free_port()
    connection = Connection(Cluster(url=NatsUrl.parse(f"tls://127.0.0.1:{port}")), "doctor")
    async with accepting(talk, port), in_background(connection.run()):
        await eventually(lambda: "offers no TLS" in str(connection.describe()["error"]))
        await eventually(lambda: len(received) >= 2)
    assert {*received} == {b""}
