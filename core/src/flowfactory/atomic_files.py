"""Files that are whole under their name or not there, whenever the process that writes them ends."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WRITING = ".writing"
"""How the name of a file ends that is not whole yet."""
LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.writing")
DAY = 24 * 3600.0


@contextmanager
def replacing(path: Path, private: bool = False) -> Iterator[Path]:
    """An empty file beside ``path`` to write to; it becomes ``path`` at the end of the block, and is gone if the block raises.

    Nobody can foresee its name. ``private``: nobody else may read it, before and after. OSError: the folder or the disk does
    not take it.
    """
    temporary = _temporary_name(path.parent)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8 to ``path``, at once. OSError: as :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_temporary_folder(parent: Path) -> Path:
    """A new folder in ``parent``, for this user alone, to be renamed when it is whole. Nobody can foresee its name.

    OSError: ``parent`` does not take it.
    """
    temporary = _temporary_name(parent)
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


def _temporary_name(parent: Path) -> Path:
    return parent / f".{secrets.token_hex(8)}{WRITING}"
