"""One request and all of its answer, within a time and a size: whatever a server does, it ends."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import weakref
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

from flowfactory import UserError

if TYPE_CHECKING:
    import httpx2

LONGEST_CONNECT = 10.0  # seconds that a connection may take, and again that its handshake may
LONGEST_ERROR = 64 * 2**10
"""Bytes of an answer that is an error: what is beyond is not read."""


@dataclass(frozen=True)
class Answer:
    """What came back, whatever its status; ``headers`` are found in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class UnusableAnswer(Exception):
    """An answer that is larger than it may be, or packed as nobody asked for, in a few words."""


class _StaleAnswer(Exception):
    """An answer that was there before its request."""


class TimedRequests:
    """Requests with ``headers``, from any number of threads; ``idle`` connections are kept.

    They are sent by an event loop, since a time-out of a blocking socket starts anew with each byte.
    """

    def __init__(self, headers: Mapping[str, str], idle: int) -> None:
        """UserError: the environment names authorities for TLS that cannot be read."""
        import httpx2

        check_authorities()
        self._http = httpx2.AsyncClient(
            # as it is: a few bytes can be unpacked to any size
            headers={"Accept-Encoding": "identity", **headers},
            timeout=None,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=idle, keepalive_expiry=30),
            follow_redirects=False,  # the headers hold a token
            # a proxy that the environment names is of no use on the way to this machine
            mounts={f"all://{name}": None for name in ("127.0.0.1", "localhost", "[::1]")},
            # none is kept: they would grow with every answer
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )
        self._loop = _Loop()
        # a daemon: a run that ends does not wait for a server
        threading.Thread(target=_run_loop, args=(self._loop,), daemon=True, name="requests").start()
        weakref.finalize(self, _stop_loop, self._loop, self._http).atexit = False

    def send(self, method: str, url: str, body: tuple[str, bytes] | None, seconds: float, limit: int | None) -> Answer:
        """The answer to ``body``, a Content-Type and bytes; its body is not read where ``limit`` is None.

        TimeoutError: it was not all there within ``seconds`` from the call on. UnusableAnswer: it has more than ``limit``
        bytes; of an error, what is beyond LONGEST_ERROR is left. httpx2.RequestError: there is no connection, or it broke.
        """
        return asyncio.run_coroutine_threadsafe(self._exchange(method, url, body, seconds, limit), self._loop).result()

    async def _exchange(
        self, method: str, url: str, body: tuple[str, bytes] | None, seconds: float, limit: int | None
    ) -> Answer:
        import httpx2

        headers, content = ({"Content-Type": body[0]}, body[1]) if body else ({}, None)
        timeout = httpx2.Timeout(None, connect=connect_timeout(seconds))
        async with asyncio.timeout(seconds):
            while True:
                seen = _Exchange()
                extensions = {"trace": seen.trace}
                try:
                    async with self._http.stream(
                        method, url, content=content, headers=headers, timeout=timeout, extensions=extensions
                    ) as response:
                        return Answer(response.status_code, response.headers, await _read_body(response, limit))
                except (httpx2.NetworkError, httpx2.RemoteProtocolError, _StaleAnswer):
                    # one that was kept may have been closed meanwhile, and its server has heard nothing
                    if seen.on_new_connection or seen.answered:
                        raise


def check_authorities() -> None:
    """UserError, which names the variable: the environment names certificates to trust where there are none."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file:
        try:
            ssl.create_default_context(cafile=file)
        except ssl.SSLError as error:
            said = "expected certificates in PEM, which begin with -----BEGIN"
            raise UserError(f"SSL_CERT_FILE {file}: {said}") from error
        except OSError as error:
            raise UserError(f"SSL_CERT_FILE {file}: {error.strerror}; name another file, or unset the variable") from error
    elif folder and not os.path.isdir(folder):
        raise UserError(f"SSL_CERT_DIR {folder}: no such folder; name another, or unset the variable")


def connect_timeout(seconds: float) -> float:
    """Seconds that a connection may take within a try of ``seconds``; its handshake may take as many."""
    # less than a half: httpcore closes what its own time-out ends, and not a handshake that is cancelled
    return min(LONGEST_CONNECT, seconds / 3)


class _Exchange:
    """What is seen of one request on its way."""

    on_new_connection = False
    answered = False

    def __init__(self) -> None:
        self._waited = asyncio.Event()

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Hear of ``event``, as httpcore names it. _StaleAnswer: the answer was read before anything could come."""
        if event == "connection.connect_tcp.started":
            self.on_new_connection = True
        elif event == "http11.receive_response_headers.started":
            # what comes from the network lets the loop go on first
            asyncio.get_running_loop().call_soon(self._waited.set)
        elif event == "http11.receive_response_headers.complete":
            if not self._waited.is_set():
                raise _StaleAnswer
            self.answered = True


async def _read_body(response: httpx2.Response, limit: int | None) -> bytes:
    refused = response.status_code != 200
    if limit is None and not refused:
        return b""
    most = LONGEST_ERROR if refused or limit is None else limit
    length = response.headers.get("content-length", "")
    if not refused and length.isdecimal() and int(length) > most:
        raise _too_large(most)
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > most:
            if not refused:
                raise _too_large(most)
            break
    packed = response.headers.get("content-encoding", "identity").strip().lower()
    try:
        whole = bytes(body) if packed == "identity" else _unpack(bytes(body), packed, most)
    except UnusableAnswer:
        if not refused:
            raise
        return b""
    if len(whole) > most and not refused:
        raise _too_large(most)
    return whole[:most]


def _unpack(body: bytes, packed: str, most: int) -> bytes:
    """``body``, unpacked, as far as one byte beyond ``most``. UnusableAnswer: it cannot be."""
    if packed not in ("gzip", "x-gzip", "deflate"):
        raise UnusableAnswer(f"its answer is packed as {packed[:40]!r}, which was not asked for")
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, most + 1)
    except zlib.error as error:
        raise UnusableAnswer(f"its answer cannot be unpacked: {error}") from error


def _too_large(most: int) -> UnusableAnswer:
    size = f"{most / 2**20:.3g} MiB" if most >= 2**20 else f"{most / 2**10:.3g} KiB"
    return UnusableAnswer(f"its answer is larger than {size}")


class _Loop(asyncio.SelectorEventLoop):
    """Looks names up in threads of its own, once at a time each.

    Those that asyncio takes are waited for when the process ends, and a resolver may take minutes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lookups: dict[tuple[Any, ...], asyncio.Future[Any]] = {}

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        key = (host, port, family, type, proto, flags)
        found = self._lookups.get(key)
        if found is None:
            found = self._lookups[key] = self.create_future()
            threading.Thread(target=self._look_up, args=(key, found), daemon=True, name="look-up").start()
        result: list[Any] = await asyncio.shield(found)  # others wait for it too
        return result

    def _look_up(self, key: tuple[Any, ...], found: asyncio.Future[Any]) -> None:
        result: Any = None
        problem: Exception | None = None
        try:
            result = socket.getaddrinfo(*key)
        except Exception as error:
            problem = error

        def settle() -> None:
            del self._lookups[key]
            if problem is None:
                found.set_result(result)
            else:
                found.set_exception(problem)
                found.exception()  # seen, whether or not somebody still waits

        with suppress(RuntimeError):  # the loop has ended meanwhile
            self.call_soon_threadsafe(settle)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop_loop(loop: asyncio.AbstractEventLoop, http: httpx2.AsyncClient) -> None:
    async def finish() -> None:
        await http.aclose()
        loop.stop()

    loop.call_soon_threadsafe(lambda: loop.create_task(finish()))
