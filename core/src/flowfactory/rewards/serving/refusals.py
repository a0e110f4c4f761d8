"""Requests that are answered with a sentence instead of scores."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

LINGER = 10.0
"""Seconds for which what is still sent is let go, so that its sender gets to read why; many read nothing before that."""
LET_GO = 64 * 2**20
"""Bytes, likewise."""

LONGEST = 2000
"""Characters of a sentence, which may be a reward's."""


class RequestRefused(Exception):
    """A request that is answered with ``status`` and a sentence; ``unread``: before its body was read."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None, unread: bool = False) -> None:
        super().__init__(sentence if len(sentence) <= LONGEST else sentence[:LONGEST] + "…")
        self.status, self.unread = status, unread
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    def response(self) -> Response:
        """The answer."""
        body = json.dumps({"error": str(self)})
        if self.unread:
            return _EarlyResponse(body, self.status, {**self.headers, "Connection": "close"}, "application/json")
        return Response(body, self.status, self.headers, "application/json")


class _EarlyResponse(Response):
    """One that is sent at once; then what comes is let go for a while, and the connection ends."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        # a second Ctrl+C ends the patience, too
        with suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(LINGER):
                await _let_go(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _let_go(receive: Receive) -> None:
    left = LET_GO
    begun = time.monotonic()
    while left > 0 and time.monotonic() - begun < LINGER:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body", False):
            return
