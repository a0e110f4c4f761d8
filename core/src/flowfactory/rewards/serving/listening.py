"""The socket that takes connections: its address, and how many connections there may be."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from flowfactory.errors import UserError

MOST = 1024
"""Connections at once."""
RESERVED = 128
"""Descriptors that connections leave to the rest of the process."""
SHARE = 3 / 4
"""Of all connections, those that one address may have: many ranks may ask from one node or through one proxy."""
BUSY = b'{"error": "too many connections are open"}'
SENT_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BUSY), BUSY)
)

_log = logging.getLogger("flowfactory.serve")


class BoundedListener(socket.socket):
    """A listening socket that takes ``most`` connections at once, and ``SHARE`` of them from one address.

    Those beyond are answered 503, or just closed where ``encrypted``. They are counted here, before a TLS handshake.
    """

    encrypted = False

    def __init__(self, family: int, kind: int, most: int) -> None:
        super().__init__(family, kind)
        self.most = most
        self._open: Counter[str] = Counter()

    def accept(self) -> tuple[socket.socket, Any]:
        """As of every socket. ConnectionAbortedError, which an event loop passes over: there are enough."""
        connection, address = super().accept()
        host = address[0]
        if self._open[host] >= max(1, int(self.most * SHARE)) or self._open.total() >= self.most:
            _log.warning("%s has %d connections of %d; more are sent away", host, self._open[host], self._open.total())
            _send_away(connection, self.encrypted)
            raise ConnectionAbortedError
        self._open[host] += 1
        return _Counted(connection, lambda: self._release(host)), address

    def _release(self, host: str) -> None:
        self._open[host] -= 1
        if not self._open[host]:
            del self._open[host]


class _Counted(socket.socket):
    """A connection that tells when it is closed."""

    def __init__(self, connection: socket.socket, release: Callable[[], None]) -> None:
        super().__init__(connection.family, connection.type, connection.proto, connection.detach())
        self._release: Callable[[], None] | None = release

    def close(self) -> None:
        super().close()
        release, self._release = self._release, None
        if release is not None:
            release()


def _send_away(connection: socket.socket, encrypted: bool) -> None:
    with connection, suppress(OSError):
        connection.setblocking(False)
        if not encrypted:
            connection.send(SENT_AWAY)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(2**16)  # what is closed unread is a reset, which may overtake the answer


def most_connections() -> int:
    """How many connections this process can have, with what else it opens."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return MOST
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(1, min(MOST, soft - RESERVED))


def bind(host: str, port: int) -> BoundedListener:
    """A socket with its address, which does not listen yet. UserError: it cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UserError(f"--host {host}: {error.strerror}") from error
    found = BoundedListener(family, kind, most_connections())
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise port_in_use(host, port) from error
        raise UserError(f"--host {host} --port {port}: {error.strerror}") from error
    return found


def port_in_use(host: str, port: int) -> UserError:
    """Somebody else listens there."""
    return UserError(f"--port {port}: in use on {host}; choose another, or 0 for any that is free")


def is_local(host: str) -> bool:
    """Whether nobody outside this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
