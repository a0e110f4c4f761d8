"""A process and those that it started: whether it lives, and the end of all of them."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess

POLL = 0.01  # seconds


class ProcessFamily:
    """``process`` and, where it leads a session of its own, whatever it leaves in it.

    multiprocessing itself waits for the end of a pipe, which what a process started may hold, and which it may write to.
    """

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._ended = False

    def lives(self) -> bool:
        """Whether the process does; once it does not, nothing of its family does."""
        with self._lock:
            if not self._ended and not self._process.is_alive():
                self._ended = True
                self._kill_group()  # its number is nobody else's so soon
            return not self._ended

    def kill(self) -> None:
        """Kill all, and do not wait."""
        with self._lock:
            if not self._ended:
                self._kill_group()
                self._process.kill()  # it may not lead yet

    def wait(self, seconds: float) -> bool:
        """Whether the process ended within ``seconds``."""
        end = time.monotonic() + seconds
        while self.lives():
            if time.monotonic() >= end:
                return False
            time.sleep(POLL)
        return True

    def _kill_group(self) -> None:
        if hasattr(os, "killpg") and self._process.pid is not None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)


def lead_session() -> None:
    """Have this process, and what it starts, be ended together."""
    if hasattr(os, "setsid"):
        with suppress(OSError):  # it leads one already
            os.setsid()
