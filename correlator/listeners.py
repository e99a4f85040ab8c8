"""Who listens at the other end of a connection that stays on this host.

Problem. While a daemon, a database or a broker of this host is down, any user of the host may listen at its port, and
would get the token or the password of whoever connects. A port below 1024 is root's, the others are anybody's.

Model. The kernel knows the owner of both ends of such a connection. The check is made when the connection is open and
nothing has been sent: the owner is then that of this very connection, whoever listens later. A secret is sent to root,
to ourselves, and to the account of a service; an ordinary user is a stranger.

Where the owner is not known, the secret is sent. The other end is then on another host, which only TLS can identify, or
root has led the port elsewhere (container engines do that), or this is a system without /proc. A user namespace shows
users of the host as `nobody`, who counts as a service.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from correlator.errors import ForeignListener

ORDINARY: Final = range(1000, 61184)
"""User IDs of people, by https://systemd.io/UIDS-GIDS/: those of services are below, or those of `DynamicUser=`, above.

Those from 65536 on are people's as well: of a directory service, or their containers'.
"""

BEYOND: Final = 65536

_TABLES = ("tcp", "tcp6")
_LISTEN = "0A"


def check_listener(connection: Any, secret: str, instead: str) -> None:
    """Check who has the other end of a connected socket, before `secret` is sent. It reads files.

    `secret` and `instead`, what to do, are words of the message.

    Raises:
        ForeignListener: An ordinary user of this host has it.
    """
    owner = owner_of_peer(connection)
    if owner is None or not is_stranger(owner):
        return
    import pwd  # noqa: PLC0415 - Windows has none

    try:
        user = f"the user {pwd.getpwuid(owner).pw_name} (uid {owner})"
    except KeyError:
        user = f"uid {owner}, which has no name here"
    where = connection.getpeername()
    place = where if isinstance(where, str) else f"port {where[1]} of this host"
    raise ForeignListener(
        f"{user} listens at {place}, not root, a service or the user who connects: {secret} was not sent. If that is"
        f" no attack, {instead}"
    )


def is_stranger(uid: int) -> bool:
    """True for an ordinary user who is not the user of this process."""
    return (uid in ORDINARY or uid >= BEYOND) and uid not in (os.getuid(), os.geteuid())


def owner_of_peer(connection: Any) -> int | None:
    """The user ID of the program at the other end of a connected socket; None if it is not known."""
    if sys.platform != "linux":
        return None
    if connection.family == socket.AF_UNIX:
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", peer)[1])
    try:
        ours, theirs = _place(connection.getsockname()), _place(connection.getpeername())
    except OSError:  # it has ended
        return None
    if not theirs[0].is_loopback and theirs[0] != ours[0]:
        return None
    listening: list[int] = []
    for local, remote, state, uid, inode in _sockets(theirs[1]):
        # A connection that waits to be accepted has no inode, and belongs to nobody yet.
        if (local, remote) == (theirs, ours) and inode:
            return uid
        if state == _LISTEN and (local[0] == theirs[0] or local[0].is_unspecified):
            listening.append(uid)
    return max(listening, key=is_stranger, default=None)


_Place = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]


def _place(address: tuple[Any, ...]) -> _Place:
    """An address of a socket. One of IPv4 that an IPv6 socket has is that of IPv4."""
    ip = ipaddress.ip_address(address[0].partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip, address[1]


def _sockets(port: int) -> Iterator[tuple[_Place, _Place, str, int, int]]:
    """All TCP sockets of this network namespace at a local port: local and remote place, state, user ID, inode.

    The format is that of https://docs.kernel.org/networking/proc_net_tcp.html.
    """
    mark = f":{port:04X} "
    for table in _TABLES:
        try:
            with Path("/proc/self/net", table).open(encoding="ascii") as lines:
                for line in lines:
                    if mark in line and (fields := line.split())[1].endswith(mark.strip()):
                        yield _written(fields[1]), _written(fields[2]), fields[3], int(fields[7]), int(fields[9])
        except OSError:
            continue


def _written(text: str) -> _Place:
    """A place as the kernel writes it: words of 32 bits in the order of this machine, in hexadecimal."""
    address, _, port = text.partition(":")
    words = struct.pack(f"={len(address) // 8}I", *(int(address[n : n + 8], 16) for n in range(0, len(address), 8)))
    return _place((str(ipaddress.ip_address(words)), int(port, 16)))
