"""What a run under way needs of the cache, told in a file there to whoever makes room. Imports no torch."""

from __future__ import annotations

import os
import re
import secrets
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from flowfactory.atomic_files import DAY
from flowfactory.untrusted_files import Refused, read_bytes

LEASE = re.compile(r"\.[0-9a-f]{16}\.needed")
RENEWED = 600.0
"""Seconds after which a lease is renewed; one that was not for a day is a killed run's."""
LARGEST = 2**30


class Lease:
    """The keys that this process needs until it ends, a line each in a file in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f".{secrets.token_hex(8)}.needed"
        self._renewed = time.monotonic()
        weakref.finalize(self, _remove, self.path, os.getpid())

    def add(self, keys: Iterable[str]) -> None:
        """Need ``keys``, too. OSError: the folder takes no file."""
        handle = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW, 0o644)
        with open(handle, "w") as file:
            file.writelines(f"{key}\n" for key in keys)

    def renew(self) -> None:
        """Go on needing them."""
        if time.monotonic() - self._renewed > RENEWED:
            self._renewed = time.monotonic()
            with suppress(OSError):  # deleted by hand
                os.utime(self.path)


def leased_keys(folder: Path) -> set[str]:
    """What runs under way need of ``folder``. Leases of killed runs go."""
    found: set[str] = set()
    for path in folder.glob(".*.needed"):
        with suppress(OSError, Refused):  # it went meanwhile, or is not for us to read or to delete
            if LEASE.fullmatch(path.name) and time.time() - path.lstat().st_mtime > DAY:
                path.unlink()
            elif LEASE.fullmatch(path.name):
                found.update(read_bytes(path, LARGEST, within=folder).decode("ascii", "replace").split())
    return found


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # not where a process that was forked ends
        with suppress(OSError):
            path.unlink()
