"""Which checkpoints of a run there are, and what lies in one, by names alone. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from flowfactory.errors import UserError

FOLDER = "checkpoints"
"""That of a run directory in which they are."""
MANIFEST = "checkpoint.json"
"""The file that is written last: a folder without it is no checkpoint."""
NUMBER = "[0-9]{6}|[1-9][0-9]{6,}"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, oldest first; whether one is whole is not looked at. Other names are passed over.

    UserError: the folder cannot be read.
    """
    try:
        there = [path for path in folder.iterdir() if re.fullmatch(NUMBER, path.name) and (path / MANIFEST).exists()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}; see that you may read it") from error
    return sorted(there, key=lambda path: int(path.name))


def lies_in_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a checkpoint in a run directory, or below one; it need not be there."""
    return any(place.parent.name == FOLDER and re.fullmatch(NUMBER, place.name) for place in (path, *path.parents))
