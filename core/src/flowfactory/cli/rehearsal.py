"""Something done first in a copy of this process, so that nothing of it is left here where it goes wrong."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout


def rehearse(task: Callable[[], None]) -> bool:
    """Whether ``task`` was done without an error in a fork of this process; what it printed is then printed here.

    Else nothing is printed. False, with nothing tried, where no process can be forked, or where other threads run, which a
    fork would lack.
    """
    if not hasattr(os, "fork") or threading.active_count() > 1:
        return False
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else what waits in it would be written twice
    read, write = os.pipe()
    child = os.fork()
    if not child:
        _do_and_tell(task, write)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        told = answer.read()
    _, status = os.waitpid(child, 0)
    if status:
        return False
    for stream, text in zip((sys.stderr, sys.stdout), json.loads(told), strict=True):
        stream.write(text)
        stream.flush()
    return True


def _do_and_tell(task: Callable[[], None], write: int) -> None:
    """Never returns: what the interpreter would do at its end is the parent's."""
    code = 1
    try:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            task()
        with os.fdopen(write, "wb") as answer:
            answer.write(json.dumps([err.getvalue(), out.getvalue()]).encode())
        code = 0
    finally:
        os._exit(code)
