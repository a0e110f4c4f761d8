"""Reading what a stranger may have written: a regular file, within a size, and below a folder where that is asked."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any

DEEPEST = 32
"""How deep lists and mappings may stand in one another where nothing needs more: what reads them further has limits, too."""
TOO_DEEP = f"is nested more than {DEEPEST} deep"


class Refused(Exception):
    """Why a file is not read, in a few words that follow its name."""


def read_bytes(path: Path, limit: int, within: Path | None = None) -> bytes:
    """All of the regular file ``path``, at most ``limit`` bytes, which lies below ``within``, links followed.

    Refused: it is something else, larger, or elsewhere. OSError: it cannot be read.
    """
    with open_regular(path, within) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > limit else file.read(size + 1)
        if len(content) > size:  # it grew, or is one of /proc, whose sizes are 0
            content += file.read(limit + 1 - len(content))
    if max(size, len(content)) > limit:
        raise Refused(f"is larger than {_size(limit)}")
    return content


def open_regular(path: Path, within: Path | None = None) -> BufferedReader:
    """The regular file ``path``, open for reading, which lies below ``within``, links followed.

    Refused: it is something else, or elsewhere. OSError: it cannot be opened.
    """
    if within is not None and not leads_into(path, within):
        raise Refused(f"leads out of {within}")
    # without waiting, as a pipe without a writer would have it
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Refused("is no file")
    return open(handle, "rb")


def leads_into(path: Path, folder: Path) -> bool:
    """Whether ``path``, links followed, lies below ``folder``."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))  # resolve() raises where links go round


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Refused: it is none, is not UTF-8, or is nested more than DEEPEST deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise Refused(TOO_DEEP) from None
    except ValueError as error:
        raise Refused(f"is no JSON ({str(error).partition('; use sys.')[0]})") from error  # of thousands of digits
    inner = [value]
    for _ in range(DEEPEST + 1):
        inner = [item for each in inner if isinstance(each, dict | list) for item in _items(each)]
        if not inner:
            return value
    raise Refused(TOO_DEEP)


def read_json(path: Path, limit: int, within: Path | None = None) -> Any:
    """The value in a JSON file. Refused, OSError: as :func:`read_bytes` and :func:`parse_json`."""
    return parse_json(read_bytes(path, limit, within))


def _size(limit: int) -> str:
    return f"{limit / 2**20:g} MiB" if limit >= 2**20 else f"{limit / 2**10:g} KiB"


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
