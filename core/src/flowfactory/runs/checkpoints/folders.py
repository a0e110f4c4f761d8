"""The folders of checkpoints before they have their names, and after: being written, moved into place, being deleted.

A process that slept while another run took over its directory goes on where it was, and asks for the lock too late. So what
is being written has a name that no other process gives: what another run finds is not its own, and it removes it.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from flowfactory.checkpoint_names import NUMBER
from flowfactory.runs.checkpoints.files import flush_to_disk
from flowfactory.runs.checkpoints.manifest import START

WRITING, REMOVING = ".writing-", ".removing-"
LEFTOVER = re.compile(rf"\.(?:writing|removing)-(?:{NUMBER}|{START})(?:-[0-9a-f]{{16}})?")


def temporary_folder(final: Path, mark: str) -> Path:
    """Where ``final`` is written before it is there; ``mark``, 16 hexadecimal digits, tells its writer from every other."""
    return final.with_name(f"{WRITING}{final.name}-{mark}")


def find_leftovers(folder: Path) -> list[Path]:
    """What is half written or half deleted in ``folder``, by whomever."""
    return [path for path in folder.glob(".*") if LEFTOVER.fullmatch(path.name)]


def move(temporary: Path, final: Path) -> None:
    """Give ``temporary`` its name, and delete what had it. OSError: it cannot be; what had the name has it."""
    aside = _put_aside(final) if final.exists() else None  # the same iteration again, after an older one was resumed
    try:
        os.rename(temporary, final)
    except OSError:
        if aside is not None:  # another run's, which has removed ``temporary``
            os.rename(aside, final)
        raise
    flush_to_disk(final.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a checkpoint, whole or being written, which is gone at once or not at all. OSError: it cannot be."""
    shutil.rmtree(_put_aside(path), ignore_errors=True)


def give_up(temporary: Path) -> None:
    """Delete what is being written, as far as it is there."""
    with suppress(OSError):
        remove(temporary)  # at once, so that no other rank writes into what is being deleted
    shutil.rmtree(temporary, ignore_errors=True)


def _put_aside(path: Path) -> Path:
    aside = path.with_name(f"{REMOVING}{path.name.removeprefix(WRITING)}")
    os.rename(path, aside)
    return aside
