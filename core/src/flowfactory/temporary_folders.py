"""Folders that go with the process that made them, also where it was killed."""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

DAY = 24 * 3600.0


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder below the system's for temporary files, for this user alone; it is gone after the block.

    It is locked until then, and the system takes the lock from a process that ends in whatever way: by that
    :func:`remove_abandoned`, and systemd, know which ones are left over (https://systemd.io/TEMPORARY_DIRECTORIES). The first
    call of a process removes those.
    """
    _remove_abandoned_once()
    with TemporaryDirectory(prefix=_prefix()) as name:
        handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # a disk that knows no locks, where leftovers stay
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(name)
        finally:
            os.close(handle)


def remove_abandoned(age: float = DAY) -> None:
    """Delete what :func:`temporary_folder` made for this user on this host, is ``age`` seconds old and has no process."""
    name = re.compile(rf"{re.escape(_prefix())}[a-z0-9_]+")  # no dash, as in a longer name of another host
    for path in Path(gettempdir()).glob(f"{_prefix()}*"):
        if name.fullmatch(path.name):
            with suppress(OSError):  # somebody else's, locked, or somebody else was quicker
                _remove(path, age)


_remove_abandoned_once = functools.cache(remove_abandoned)


def _prefix() -> str:
    # of this host: where several share the disk, a lock may be seen on one alone
    return f"flowfactory-{re.sub(r'[^A-Za-z0-9.-]', '-', socket.gethostname())}-"


def _remove(path: Path, age: float) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        about = os.fstat(handle)
        if about.st_uid != os.geteuid() or time.time() - about.st_mtime <= age:
            return
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
    finally:
        os.close(handle)
