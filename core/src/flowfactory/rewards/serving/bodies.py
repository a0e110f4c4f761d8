"""The bodies of requests: read within a time, a size, and the room that there is for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from starlette.requests import Request

from flowfactory.rewards.serving.refusals import RequestRefused

SILENCE = 60.0
"""Seconds that the next bytes of a request may take."""
ARRIVAL = 600.0
"""Seconds that all of a request may take, so that whoever trickles takes nobody's place."""


class Room:
    """Bytes that are held at once, at most ``most``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    @contextmanager
    def entered(self) -> Iterator[Place]:
        """A place, which is empty at first, and given up at the end."""
        place = Place(self)
        try:
            yield place
        finally:
            place.leave()

    def take(self, count: int) -> bool:
        """Whether there was room for ``count`` more."""
        if self.held + count > self._most:
            return False
        self.held += count
        return True


class Place:
    """The bytes that one request holds."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size = 0

    def grow(self, size: int) -> bool:
        """Whether there is room for ``size`` in all."""
        more = max(0, size - self.size)
        if not self._room.take(more):
            return False
        self.size += more
        return True

    def leave(self) -> None:
        """Hold nothing any more."""
        self._room.held -= self.size
        self.size = 0


async def read_body(request: Request, limit: int, place: Place, wait: int) -> bytes:
    """All of the body. RequestRefused: it is larger than ``limit``, there is no room for it in ``place``, or it is late.

    One that says its size is refused before it is read; whoever asks is to come back after ``wait`` seconds.
    """
    full = RequestRefused(503, "the requests that wait already fill the memory for them", wait, unread=True)
    large = RequestRefused(
        413,
        f"the request is larger than {limit / 2**20:g} MiB; send fewer samples in one, or serve with --max-request",
        unread=True,
    )
    length = request.headers.get("content-length", "")
    declared = int(length) if length.isdecimal() else 0
    if declared > limit:
        raise large
    if not place.grow(declared):
        raise full
    body = bytearray()
    async for chunk in _chunks(request):
        if len(body) + len(chunk) > limit:
            raise large
        if not place.grow(len(body) + len(chunk)):
            raise full
        body += chunk
    return bytes(body)


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    stream = aiter(request.stream())
    end = time.monotonic() + ARRIVAL
    while True:
        left = end - time.monotonic()
        try:
            async with asyncio.timeout(min(SILENCE, left)):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            late = f"nothing came for {SILENCE:g} s" if left > SILENCE else f"it took more than {ARRIVAL:g} s to arrive"
            raise RequestRefused(408, late, unread=True) from error
        yield chunk
