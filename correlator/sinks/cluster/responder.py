"""Answers the requests of gateways, at most `MAX_RUNNING` at a time.

A flood of requests must cost the collector little: each request beyond the bound is rejected before it is decoded, and
the work for the others is cancelled when their client does not wait any more. See `correlator.cluster.rpc`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from msgspec import Struct

from correlator.cluster import rpc
from correlator.cluster.rpc import Code, Method, RemoteError
from correlator.errors import BadRequest, SourceUnavailable
from correlator.ops import cluster_metrics

log = logging.getLogger(__name__)

MAX_RUNNING = 32
"""Requests that are answered at a time. The database answers them one question at a time."""

Reply: TypeAlias = Callable[[bytes], Awaitable[None]]
"""Sends the reply to one request. It must not raise if the client has gone."""


class Handler(Struct, frozen=True):
    """`form`: the struct of the method's parameters. `answer(params)` returns JSON, at most `rpc.MAX_BYTES`."""

    form: type[Any]
    answer: Callable[[Any], Awaitable[bytes]]


class Responder:
    """Runs requests in tasks of their own. Event loop's thread only."""

    def __init__(self, handlers: Mapping[Method, Handler], most: int = MAX_RUNNING) -> None:
        self._handlers = {method.value: handler for method, handler in handlers.items()}
        self._most = most
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        return len(self._tasks)

    async def receive(self, method: str, message: bytes, reply: Reply) -> None:
        """Begin to answer a request, or reject it. Returns before the answer is sent."""
        if len(self._tasks) >= self._most:
            cluster_metrics.REQUESTS_REJECTED.inc()
            await reply(rpc.encode_failure(Code.BUSY, "the collector answers too many requests: repeat it later"))
        else:
            task = asyncio.create_task(self._respond(method, message, reply))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.sleep(0)  # many requests may have arrived together

    async def close(self) -> None:
        """Cancel what is being answered. The clients get no reply."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _respond(self, method: str, message: bytes, reply: Reply) -> None:
        try:
            answer = rpc.encode_result(await self._answer(method, message))
            if len(answer) > rpc.MAX_BYTES:
                raise RemoteError(Code.INTERNAL, f"the reply has {len(answer)} bytes, more than {rpc.MAX_BYTES}")
        except RemoteError as error:
            answer = rpc.encode_failure(error.code, error.detail)
        except SourceUnavailable as error:
            answer = rpc.encode_failure(Code.UNAVAILABLE, error.public)
        except BadRequest as error:
            answer = rpc.encode_failure(Code.BAD_REQUEST, str(error))
        except TimeoutError:
            answer = rpc.encode_failure(Code.TIMEOUT, "the collector could not answer in time")
        except Exception:
            log.exception("a request of a gateway failed", extra={"method": method})
            answer = rpc.encode_failure(Code.INTERNAL, "Internal error. See the collector's log.")
        await reply(answer)

    async def _answer(self, method: str, message: bytes) -> bytes:
        request = rpc.decode_request(message)
        if (handler := self._handlers.get(method)) is None:
            raise RemoteError(Code.UNSUPPORTED, f"the collector does not know the request {method!r}")
        params = rpc.decode_params(request.params, handler.form)
        async with asyncio.timeout(request.within):
            return await handler.answer(params)
