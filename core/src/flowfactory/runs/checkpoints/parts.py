"""What each rank tells the leading one of the shards that it wrote: a file beside them, since a thread asks no other rank."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from flowfactory.atomic_files import write_atomically
from flowfactory.errors import RunError
from flowfactory.runs.checkpoints.files import Damaged, Stored
from flowfactory.runs.checkpoints.manifest import check_files
from flowfactory.runs.checkpoints.staging import StagedShard
from flowfactory.untrusted_files import Refused, read_json

PART = ".part-"
LONGEST_PART = 2**20
"""Bytes of what a rank tells, which has a hundred for each of its files."""


def write_part(folder: Path, rank: int, staged: Mapping[str, StagedShard], require: Callable[[], None]) -> None:
    """Write this rank's shards, and then what they are for the leading rank to read."""
    told = {}
    for name, shard in staged.items():
        require()  # before each: a process that slept for hours goes on here
        if (place := (folder / name).parent) != folder:  # which is not made again where another run removed it
            place.mkdir(exist_ok=True)
        told[name] = shard.write(folder / name)
    require()
    write_atomically(folder / f"{PART}{rank}", json.dumps(told))


def read_part(path: Path, given_up: threading.Event) -> dict[str, Stored]:
    """What :func:`write_part` told, once it has; the file is gone then. RunError: it told nothing, or is given up."""
    while not path.exists():
        if given_up.wait(0.02) or not threading.main_thread().is_alive():
            raise RunError(f"{path} was given up")
    try:
        told = check_files(read_json(path, LONGEST_PART, path.parent))
    except Refused as error:
        raise RunError(f"{path} {error}; see who else writes there") from error
    except Damaged as error:
        raise RunError(f"{path} is not what a rank writes; see who else writes there") from error
    path.unlink()
    return told
