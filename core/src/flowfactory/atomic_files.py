"""Files that are whole under their name or not there, whenever the process that writes them ends."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

WRITING = ".writing"
"""How the name of a file ends that is not whole yet."""
LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.writing")
DAY = 24 * 3600.0
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DISK_FAULTS = {*NO_ROOM, errno.EROFS, errno.EIO, errno.ESTALE}


@contextmanager
def replacing(path: Path, private: bool = False) -> Iterator[Path]:
    """An empty file beside ``path`` to write to; it becomes ``path`` at the end of the block, and is gone if the block raises.

    Nobody can foresee its name. ``private``: nobody else may read it, before and after. OSError: the folder or the disk does
    not take it, which may also be a library's word; it names ``path``.
    """
    temporary = temporary_name(path.parent)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        fault = system_error(error)
        if fault is None or fault.errno not in DISK_FAULTS:
            raise
        raise OSError(fault.errno, os.strerror(fault.errno), str(path)) from error


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8 to ``path``, at once. OSError: as :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomically(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path``, at once. OSError: as :func:`replacing`."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def probe(folder: Path) -> None:
    """OSError: no file can be made in ``folder``."""
    path = temporary_name(folder)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    path.unlink()


def make_temporary_folder(parent: Path) -> Path:
    """A new folder in ``parent``, for this user alone, to be renamed when it is whole. Nobody can foresee its name.

    OSError: ``parent`` does not take it.
    """
    temporary = temporary_name(parent)
    temporary.mkdir(0o700)
    return temporary


def leftovers(folder: Path) -> list[Path]:
    """What :func:`replacing` and :func:`make_temporary_folder` made in ``folder`` and is not whole, or not any more."""
    return [path for path in folder.glob(f".*{WRITING}") if LEFTOVER.fullmatch(path.name)]


def remove_leftovers(folder: Path, age: float = DAY) -> None:
    """Delete the :func:`leftovers` in ``folder`` that are ``age`` seconds old, of writers that were killed."""
    remove_old(leftovers(folder), age)


def remove_old(paths: Iterable[Path], age: float = DAY) -> None:
    """Delete those of ``paths``, files and folders, that are ``age`` seconds old; what cannot be deleted stays."""
    for path in paths:
        with suppress(OSError):  # somebody else's, or somebody else was quicker
            if time.time() - path.lstat().st_mtime <= age:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def system_error(error: BaseException) -> OSError | None:
    """The operating system's word in ``error``; libraries wrap it in errors of their own, some of them as text."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        if found := re.search(r"\(os error (\d+)\)", str(seen)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        seen = seen.__cause__ or seen.__context__
    return None


def disk_fault(error: BaseException, what: object = "what is written") -> str | None:
    """The sentence about a disk that is full, read-only or gone; None: ``error`` is about something else."""
    fault = system_error(error)
    if fault is None or fault.errno not in DISK_FAULTS:
        return None
    return f"{fault.filename or what} cannot be written ({os.strerror(fault.errno)}); {remedy(fault)}"


def remedy(fault: OSError) -> str:
    """What to do where something cannot be written."""
    return "make room" if fault.errno in NO_ROOM else "see that it can be written to"


def temporary_name(parent: Path) -> Path:
    """A name in ``parent`` that nobody can foresee, of what :func:`remove_leftovers` deletes once it is old."""
    return parent / f".{secrets.token_hex(8)}{WRITING}"
