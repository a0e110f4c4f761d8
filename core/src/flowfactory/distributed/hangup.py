"""A run outlives the terminal and the pipe that it was started with, and hears who asks it to stop. Imports no torch."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Any

SIGHUP = getattr(signal, "SIGHUP", None)
"""What a closing terminal sends, more than once; not there on Windows."""
GONE = {errno.EPIPE, errno.EIO}
"""What it is to write to a pipe that nobody reads, and to a terminal that was closed."""


def stop_signals() -> tuple[int, ...]:
    """Those that ask a run to save and stop: Ctrl+C, SIGTERM and SIGHUP, which under nohup is not to be heard."""
    heard = SIGHUP is not None and signal.getsignal(SIGHUP) is not signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *((SIGHUP,) if heard else ()))


class OutlivingFile(io.FileIO):
    """A file descriptor that leads nowhere from when nobody is at its other end."""

    def write(self, data: Any, /) -> int:
        """How many bytes were written: all, as far as anybody is told, when nobody is there."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Have this process go on when whoever reads its output does not, as ``head`` or a terminal that is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        buffer = getattr(stream, "buffer", None)
        if stream is not getattr(sys, f"__{name}__") or type(getattr(buffer, "raw", buffer)) is not io.FileIO:
            continue  # somebody else's, or none
        raw = OutlivingFile(stream.fileno(), "w", closefd=False)
        kept: Any = raw if stream.write_through else io.BufferedWriter(raw)
        options = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
        setattr(sys, name, io.TextIOWrapper(kept, stream.encoding, stream.errors, **options))
