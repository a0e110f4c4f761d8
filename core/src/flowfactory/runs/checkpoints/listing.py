"""Which checkpoints there are, by their names alone. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from flowfactory.errors import UserError

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
