"""The requests of a gateway to collectors. Every failure is a `SourceUnavailable` that names the appliance.

The problem: a collector may be away, slow, or hang, and many clients may ask for what it has. Three rules keep the wait
of each short, and the load on collectors bounded:

* Every request has a deadline. A collector that is not connected is known at once: the NATS server says so.
* A collector that let a request pass without any reply gets no other for `REST` seconds: they fail immediately. (One
  that is slow, but alive, replies that it is.)
* At most `MAX_CALLS` requests are on their way; one more fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from msgspec import Struct

from correlator.cluster import keys, rpc
from correlator.cluster.connection import Connection
from correlator.cluster.errors import ClusterUnavailable, NoAnswer, NoResponder
from correlator.cluster.rpc import Code, Method, RemoteError
from correlator.errors import BadRequest, SourceUnavailable

T = TypeVar("T")

MAX_CALLS = 200
"""Most requests to all collectors that wait for a reply."""

REST = 2.0
"""Seconds without requests to a collector that let one pass without a reply."""

GRACE = 0.5
"""Seconds in addition to those of a request, in which the collector may reply that they have passed."""


class Caller:
    """Sends requests to collectors. Use it in one event loop; a call may be cancelled at any point."""

    def __init__(self, connection: Connection, clock: Callable[[], float] = time.monotonic) -> None:
        self._connection = connection
        self._clock = clock
        self._calls = 0
        self._silent: dict[str, float] = {}
        """For each instance that let a request pass: when it did so."""

    async def call(self, instance: str, method: Method, params: Struct, form: type[T], within: float = rpc.WITHIN) -> T:
        """Return what the collector of `instance` replies within so many seconds.

        Raises:
            BadRequest: The collector cannot understand what the client asked for.
            SourceUnavailable: There is no reply, or the collector cannot answer. The message is for clients.
        """
        if self._clock() - self._silent.get(instance, float("-inf")) < REST:
            raise SourceUnavailable(f"{instance}: the collector does not answer")
        if self._calls >= MAX_CALLS:
            raise SourceUnavailable(f"{instance}: too many requests wait for collectors")
        self._calls += 1
        try:
            request = rpc.encode_request(params, within)
            subject = keys.rpc(instance, method.value)
            reply = await self._connection.request(subject, request, within=within + GRACE)
            self._silent.pop(instance, None)
            return rpc.decode_reply(reply.data, form)
        except NoResponder:
            raise SourceUnavailable(f"{instance}: no collector is connected to the cluster") from None
        except NoAnswer:
            self._silent[instance] = self._clock()
            raise SourceUnavailable(f"{instance}: the collector did not answer within {within:g} s") from None
        except ClusterUnavailable:
            raise SourceUnavailable(f"{instance}: the cluster cannot be reached") from None
        except RemoteError as error:
            if error.code is Code.BAD_REQUEST:
                raise BadRequest(error.detail) from error
            raise SourceUnavailable(f"{instance}: {error.detail}") from error
        finally:
            self._calls -= 1
