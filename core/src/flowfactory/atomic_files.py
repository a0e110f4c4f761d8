"""Files that are whole under their name or not there, whenever the process that writes them ends."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WRITING = ".writing"
"""How the name of a file ends that is not whole yet."""
DAY = 24 * 3600.0


@contextmanager
def replacing(path: Path, private: bool = False) -> Iterator[Path]:
    """An empty file beside ``path`` to write to; it becomes ``path`` at the end of the block, and is gone if the block raises.

    Nobody can foresee its name. ``private``: nobody else may read it, before and after. OSError: the folder or the disk does
    not take it.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}{WRITING}")
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


def remove_leftovers(folder: Path, age: float = DAY) -> None:
    """Delete what :func:`replacing` left in ``folder`` when it was killed, once it is ``age`` seconds old."""
    for path in folder.glob(f".*{WRITING}"):
        with suppress(OSError):  # somebody else's, or somebody else was quicker
            if time.time() - path.lstat().st_mtime > age:
                path.unlink()
