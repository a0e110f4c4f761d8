"""All that commands print: what files, servers and plugins put into it cannot steer the terminal, nor fake a line of ours."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import Any

from flowfactory.control_characters import foreign_lines, one_line, own_lines
from flowfactory.distributed.environment import read_environment
from flowfactory.errors import UserError


def warn(sentence: str) -> None:
    """Print one line to standard error."""
    print(one_line(sentence), file=sys.stderr, flush=True)


def say(sentence: str) -> None:
    """Print one line to standard output, at once: whoever reads a pipe waits for it."""
    print(one_line(sentence), flush=True)


def show(text: str) -> None:
    """Print lines of our own to standard output."""
    print(own_lines(text), flush=True)


def show_json(value: Any, indent: int | None = None) -> None:
    """Print ``value`` as JSON, all of it in ASCII."""
    print(json.dumps(value, indent=indent).replace("\x7f", r"\u007f"), flush=True)


def rank_prefix() -> str:
    """Which rank it is, where several processes write on one terminal."""
    try:
        found = read_environment(os.environ)
    except UserError:
        return ""
    return f"rank {found.rank}: " if found and found.world_size > 1 else ""


def contain_libraries() -> None:
    """Escape what warnings, log records and tracebacks quote, which libraries print by themselves."""
    warnings.formatwarning = _format_warning
    logging.setLogRecordFactory(_Record)
    if sys.excepthook is sys.__excepthook__:  # not that of a debugger, or of pytest
        sys.excepthook = _print_traceback
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _print_of_thread
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # where the terminal's encoding lacks a letter


_as_python_has_it = warnings.formatwarning


def _format_warning(*told: Any, **more: Any) -> str:
    return f"{foreign_lines(_as_python_has_it(*told, **more))}\n"


class _Record(logging.LogRecord):
    def __init__(self, *told: Any, **more: Any) -> None:
        super().__init__(*told, **more)
        if self.exc_info:  # else the formatter does
            self.exc_text = foreign_lines(logging.Formatter().formatException(self.exc_info))

    def getMessage(self) -> str:
        return foreign_lines(super().getMessage())


def _print_of_thread(told: threading.ExceptHookArgs) -> None:
    if told.exc_type is not SystemExit:
        _print_traceback(told.exc_type, told.exc_value, told.exc_traceback)


def _print_traceback(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    print(foreign_lines("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, flush=True)
