"""What every request passes before it is known what it asks for: its headers, and its token."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowfactory.rewards.serving.refusals import RequestRefused

HEADERS = 16 * 2**10
"""Bytes of all headers together; uvicorn bounds those alone that come in pieces."""


class Gate:
    """``app``, which is not asked by whoever lacks ``token``; ``count`` is told the path and the status of each answer.

    A request that the end of the process cuts off is answered 503, so that it is tried again.
    """

    def __init__(self, app: ASGIApp, token: str | None, count: Callable[[str, int], None]) -> None:
        self._app, self._token, self._count = app, token, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._count(scope["path"], message["status"])
            await send(message)

        try:
            try:
                _check_heads(scope)
                _check_sender(Headers(scope=scope), self._token)
            except RequestRefused as error:
                await error.response()(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        except asyncio.CancelledError:
            if begun:
                raise
            await RequestRefused(503, "the server was stopped before it had the answer", 1).response()(scope, receive, answer)


def _check_heads(scope: Scope) -> None:
    """RequestRefused: they are large, or the request does not end in one place: RFC 9112, 6.1."""
    headers = scope["headers"]
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
        said = "a request has a Content-Length or a Transfer-Encoding; send one of them"
        raise RequestRefused(400, said, unread=True)
    if sum(len(name) + len(value) for name, value in headers) > HEADERS:
        raise RequestRefused(431, f"the headers are larger than {HEADERS // 2**10} KiB", unread=True)


def _check_sender(headers: Headers, token: str | None) -> None:
    """RequestRefused: there is a token, and they lack it, or there is none, and they are a browser's."""
    if token is None:
        # only a browser says so, for a page: which can send here what its user's machine reaches, and nobody else does
        if "origin" in headers:
            said = "web pages may not ask without a token; serve with --token-env NAME, or leave out the header Origin"
            raise RequestRefused(403, said, unread=True)
        return
    given = headers.get("authorization", "")
    scheme, _, credentials = given.partition(" ")
    if scheme.lower() != "bearer" or not secrets.compare_digest(credentials.strip(" ").encode(), token.encode()):
        said = "the token is wrong" if given else "a token is required: Authorization: Bearer TOKEN"
        raise RequestRefused(401, said, unread=True)
