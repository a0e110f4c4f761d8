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
from typing import NamedTuple

from flowfactory.atomic_files import DAY
from flowfactory.process_identity import ProcessIdentity
from flowfactory.untrusted_files import Refused, read_bytes

LEASE = re.compile(r"\.[0-9a-f]{16}\.needed")
RENEWED = 600.0
"""Seconds after which a lease is renewed; one that was not for a day is a killed run's, if its process cannot be looked at."""
LARGEST = 2**30


class Lease:
    """The keys that this process needs until it ends, a line each in a file in ``folder``, below one that tells whose it is."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f".{secrets.token_hex(8)}.needed"
        self._renewed = time.monotonic()
        self._finalizer = weakref.finalize(self, _remove, self.path, os.getpid())

    def add(self, keys: Iterable[str]) -> None:
        """Need ``keys``, too. OSError: the folder takes no file."""
        handle = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW, 0o644)
        with open(handle, "w") as file:
            if os.fstat(handle).st_size == 0:  # new, or deleted by hand meanwhile
                file.write(ProcessIdentity.own().as_json())
            file.writelines(f"{key}\n" for key in keys)

    def renew(self) -> None:
        """Go on needing them."""
        if time.monotonic() - self._renewed > RENEWED:
            self._renewed = time.monotonic()
            with suppress(OSError):  # deleted by hand
                os.utime(self.path)

    def end(self) -> None:
        """Need them no more."""
        self._finalizer()


class Need(NamedTuple):
    """A lease as it was found: whose it is, if it says so, and the keys."""

    owner: ProcessIdentity | None
    keys: list[str]


def find_needs(folder: Path) -> list[Need]:
    """What runs under way need of ``folder``. Leases of killed runs go."""
    found = []
    for path in folder.glob(".*.needed"):
        if LEASE.fullmatch(path.name):
            with suppress(OSError):  # it went meanwhile, or is not for us to delete
                need = _read(path)
                ended = need.owner.has_ended() if need.owner else None
                if ended or (ended is None and time.time() - path.lstat().st_mtime > DAY):
                    path.unlink()
                else:
                    found.append(need)
    return found


def _read(path: Path) -> Need:
    try:
        first, *rest = read_bytes(path, LARGEST, within=path.parent).decode("ascii", "replace").splitlines() or [""]
    except (OSError, Refused):  # not for us to read
        return Need(None, [])
    owner = ProcessIdentity.read(first)
    return Need(owner, rest if owner else [first, *rest])


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # not where a process that was forked ends
        with suppress(OSError):
            path.unlink()
