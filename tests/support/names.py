"""Host names whose addresses a test chooses, whatever the hosts file and the name servers of the machine say."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult


class Loopback(AbstractResolver):
    """Every name leads to this machine."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


def give_addresses(monkeypatch: pytest.MonkeyPatch, name: str, *addresses: str) -> None:
    """Have `name` resolve to `addresses`: each query gets them in another order, as name servers do."""
    orders: Iterator[tuple[str, ...]] = itertools.cycle(
        [addresses[n:] + addresses[:n] for n in range(len(addresses))] or [()]
    )
    resolve = socket.getaddrinfo

    def given(host: Any, *arguments: Any, **options: Any) -> list[Any]:
        if host not in (name, name.encode()):
            return resolve(host, *arguments, **options)
        return [found for address in next(orders) for found in resolve(address, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", given)
