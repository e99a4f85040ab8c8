"""Which addresses a webhook may connect to. The rule is applied to the address of each connection, not to a name."""

from __future__ import annotations

import ipaddress
import socket
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Addresses that a gateway translates to the IPv4 address in their last 32 bits (RFC 6052)."""

_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),
        *("::1/128", "fc00::/7"),
    )
)
"""Loopback, private networks (RFC 1918, RFC 4193), and addresses behind a carrier's NAT (RFC 6598)."""

_UNICAST = ipaddress.ip_network("2000::/3")
"""The IPv6 addresses that are assigned for the Internet. Every other one is special, or reserved."""

_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)
"""Special ranges among the others: the registries of RFC 6890, of which Python's versions have different parts."""


class ForbiddenAddress(OSError):
    """A connection to an address that the configuration does not allow. Nothing was sent."""


def refusal(text: str, *, allow_private: bool) -> str | None:
    """Return why a connection to the address `text` is not allowed, or None if it is."""
    try:
        address = _unwrapped(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return f"{text} is no IP address"
    if any(address in network for network in _PRIVATE):
        return None if allow_private else f"{text} is private or loopback, and allow_private is false"
    if any(address in network for network in _NEVER) or (address.version == 6 and address not in _UNICAST):
        return f"{text} is link-local, multicast or reserved, and never allowed"
    return None


def guarded_socket(family: int, kind: int, protocol: int, address: str, *, allow_private: bool) -> socket.socket:
    """Return a socket to connect to `address`. Raises: `ForbiddenAddress`."""
    if why := refusal(address, allow_private=allow_private):
        raise ForbiddenAddress(why)
    return socket.socket(family, kind, protocol)


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return ipaddress.IPv4Address(address.packed[-4:])
    return address
