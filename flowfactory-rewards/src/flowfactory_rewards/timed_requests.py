"""One request and all of its answer, within a time and a size: whatever a server does, it ends."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT = 10.0  # seconds that a connection may take
LARGEST_ANSWER = 64 * 2**20
"""Bytes of an answer, unpacked: far beyond what a reward or a judge has to say."""


@dataclass(frozen=True)
class Answer:
    """What came back, whatever its status; ``headers`` are found in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class UnboundedAnswer(Exception):
    """An answer that is larger than it may be, in a few words."""


class TimedRequests:
    """Requests with ``headers``, from any number of threads; ``idle`` connections are kept.

    They are sent by an event loop, since a time-out of a blocking socket starts anew with each byte.
    """

    def __init__(self, headers: Mapping[str, str], idle: int) -> None:
        import httpx2

        self._http = httpx2.AsyncClient(
            headers=dict(headers),
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=idle, keepalive_expiry=30),
            follow_redirects=False,  # the headers hold a token
            # a proxy that the environment names is of no use on the way to this machine
            mounts={f"all://{name}": None for name in ("127.0.0.1", "localhost", "[::1]")},
        )
        self._loop = asyncio.new_event_loop()
        # a daemon: a run that ends does not wait for a server
        threading.Thread(target=_run_loop, args=(self._loop,), daemon=True, name="requests").start()
        weakref.finalize(self, _stop_loop, self._loop, self._http).atexit = False

    def send(self, method: str, url: str, body: tuple[str, bytes] | None, seconds: float) -> Answer:
        """The answer to ``body``, a Content-Type and bytes.

        TimeoutError: it was not all there within ``seconds`` from the call on. UnboundedAnswer: it was too large.
        httpx2.RequestError: there is no connection, or it broke.
        """
        return asyncio.run_coroutine_threadsafe(self._exchange(method, url, body, seconds), self._loop).result()

    async def _exchange(self, method: str, url: str, body: tuple[str, bytes] | None, seconds: float) -> Answer:
        headers, content = ({"Content-Type": body[0]}, body[1]) if body else ({}, None)
        async with asyncio.timeout(seconds), self._http.stream(method, url, content=content, headers=headers) as response:
            return Answer(response.status_code, response.headers, await _read_body(response))


async def _read_body(response: httpx2.Response) -> bytes:
    limit = f"its answer is larger than {LARGEST_ANSWER / 2**20:g} MiB"
    if "," in response.headers.get("content-encoding", ""):  # which may take for ever to unpack to nothing
        raise UnboundedAnswer("its answer is compressed more than once")
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) > LARGEST_ANSWER:
        raise UnboundedAnswer(limit)
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > LARGEST_ANSWER:
            raise UnboundedAnswer(limit)
    return bytes(body)


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
