"""Host names whose addresses a test chooses, whatever the hosts file and the name servers of the machine say."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from typing import Any

import pytest


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
