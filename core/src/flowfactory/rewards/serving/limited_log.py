"""What the service writes to standard error: one line each, and not more of them than somebody may read."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from flowfactory.discovery.source_places import describe_exception

LINES = 20
"""Lines within WINDOW; the rest are counted."""
WINDOW = 60.0
"""Seconds."""


class LimitedLog(logging.Handler):
    """Writes what is logged with ``write``, ``LINES`` within ``WINDOW`` seconds, and how many more there were."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._write = write
        self._begun = -WINDOW
        self._written = self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now - self._begun >= WINDOW:
            self._begun, self._written = now, 0
        if self._written < LINES:
            self._written += 1
            self._write(f"warning: {_describe(record)}")
            return
        self._left_out += 1
        if self._left_out == 1:
            timer = threading.Timer(self._begun + WINDOW - now, self._tell)
            timer.daemon = True
            timer.start()

    def _tell(self) -> None:
        with self.lock:  # type: ignore[union-attr]
            count, self._left_out = self._left_out, 0
        self._write(f"warning: {count} more lines were left out within {WINDOW:g} s")


def _describe(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if record.exc_info else None
    message = record.getMessage().strip().split("\n")[0]
    return message if error is None else f"{message}: {describe_exception(error)}"


def limit_logs(write: Callable[[str], None]) -> None:
    """Have the service, its HTTP server and its event loop log through one :class:`LimitedLog`."""
    handler = LimitedLog(write)
    for name in ("flowfactory.serve", "uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
