"""The files of a checkpoint: size and checksum, and that they are on the disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from flowfactory.untrusted_files import open_regular


class Stored(NamedTuple):
    """What a file has to be."""

    bytes: int
    checksum: str


class Damaged(Exception):
    """What of a checkpoint is missing or not what was written."""


def file_record(path: Path) -> Stored:
    """Size and checksum of a file. Refused: it is none."""
    with open_regular(path) as file:
        return Stored(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, new_digest).hexdigest())


def new_digest() -> hashlib.blake2b:
    """What checksums are made with."""
    return hashlib.blake2b(digest_size=16)


def flush_to_disk(path: Path) -> None:
    """Have the system write ``path`` to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
