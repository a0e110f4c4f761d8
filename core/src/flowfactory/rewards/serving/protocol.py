"""HTTP/1.1 on one connection, which ends within a time whatever its other end does or leaves."""

from __future__ import annotations

import asyncio
from typing import Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD = 30.0
"""Seconds that a request may take from its first byte, or from the connection, to the end of its headers."""
REST = 15.0
"""Seconds that the rest of a request may take which is answered already."""
UNREAD = 60.0
"""Seconds in which an answer must be taken."""


class TimedProtocol(H11Protocol):
    """uvicorn's protocol with the time limits that it lacks: it has one between two requests, and no other.

    Hypercorn has a limit for each read alone, which begins anew with each byte, and granian one for headers alone and starts
    processes of its own. Neither counts connections. How long a body may take is for those who read it.
    """

    _phase: Literal["head", "rest"] | None = None
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1, low=0)  # told of each byte that is not taken
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # the answer is under way
            self.transport.abort()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: a request to speak another protocol is answered in this one, as RFC 9110, 7.8 has it."""

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _watch(self) -> None:
        phase = self._find_phase()
        if phase == self._phase:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._phase = phase
        if phase is not None:
            self._timer = self.loop.call_later(HEAD if phase == "head" else REST, self.transport.abort)

    def _find_phase(self) -> Literal["head", "rest"] | None:
        """What the other end is to send now; None where it has the time between two requests, or the service counts it."""
        if self.cycle is not None and not self.cycle.response_complete:
            return None
        if self.conn.their_state is h11.SEND_BODY:
            return "rest"
        begun = self.cycle is None or self.conn.trailing_data[0]
        return "head" if self.conn.their_state is h11.IDLE and begun else None
