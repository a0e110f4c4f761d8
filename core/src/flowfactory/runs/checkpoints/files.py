"""The files of a checkpoint: size and checksum, and that they are on the disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple


class Stored(NamedTuple):
    """What a file has to be."""

    bytes: int
    checksum: str


def file_record(path: Path) -> Stored:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        return Stored(path.stat().st_size, hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest())


def flush_to_disk(path: Path) -> None:
    """Have the system write ``path`` to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
