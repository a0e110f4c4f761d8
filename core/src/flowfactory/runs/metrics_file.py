"""``metrics.jsonl``: a line of JSON an iteration. What cannot be read of it costs its line, and is kept all the same."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from flowfactory.atomic_files import disk_fault, replacing
from flowfactory.errors import RunError
from flowfactory.untrusted_files import Refused, open_regular, parse_json

if TYPE_CHECKING:
    from flowfactory.types import Say  # which imports torch

LONGEST_LINE = 2**22
"""Bytes: a thousand metrics take a hundredth of it."""
MOST_BYTES, MOST_LINES, MOST_VALUES = 2**29, 1_000_000, 10_000_000
"""That are read for a report and the like: a hundred thousand iterations of a hundred metrics, or a million of ten."""
LAST_ITERATION = 10_000_000
LARGEST = 1e100
"""No figure of a run is as large, and the square of a larger one may be no number."""
TOLD = 3
"""Lines that are named, of those that cannot be read."""
UNREADABLE = "metrics.unreadable"


class Line(NamedTuple):
    """A line as it stands, or a piece of an enormous one; ``record`` is None where it is none, for the reason ``problem``."""

    number: int
    raw: bytes
    record: dict[str, Any] | None
    problem: str = ""


def read_lines(path: Path) -> Iterator[Line]:
    """Every line that is not empty. Refused, OSError: there is no file that can be read."""
    with open_regular(path, within=path.parent) as file:
        number, begun = 0, False
        while raw := file.readline(LONGEST_LINE):
            enormous = begun or (not raw.endswith(b"\n") and len(raw) == LONGEST_LINE)
            number += not begun
            begun = enormous and not raw.endswith(b"\n")
            if enormous:
                yield Line(number, raw, None, f"is longer than {LONGEST_LINE / 2**20:g} MiB")
            elif raw.strip():
                yield _parse(number, raw)


def _parse(number: int, raw: bytes) -> Line:
    try:
        found = parse_json(raw.decode("utf-8"))
        if not isinstance(found, dict):
            raise Refused("is no JSON object")
        iteration = found.get("iteration")
        if type(iteration) is not int or not 0 <= iteration <= LAST_ITERATION:
            raise Refused("has no iteration")
    except UnicodeDecodeError:
        return Line(number, raw, None, "is no UTF-8")
    except Refused as reason:
        return Line(number, raw, None, str(reason).partition(" (")[0])
    # names stand in every line, and are held once
    return Line(number, raw, {sys.intern(name): value for name, value in found.items() if _is_figure(value)})


def _is_figure(value: object) -> bool:
    """Whether it is a metric: NaN, which a run may well write, is none, and nothing that is no number."""
    return type(value) in (int, float) and -LARGEST < value < LARGEST  # type: ignore[operator]


def read_records(path: Path, say: Say = lambda _: None) -> list[dict[str, Any]]:
    """The records of the lines that can be read; ``say`` hears of the others."""
    records: list[dict[str, Any]] = []
    problems: dict[int, str] = {}
    size = values = 0
    try:
        for line in read_lines(path):
            size, values = size + len(line.raw), values + len(line.record or ())
            if size > MOST_BYTES or line.number > MOST_LINES or values > MOST_VALUES:
                told = f"what is from line {line.number} on is passed over: it is too much for a report"
                problems[-1] = f"{path}: {told}"
                break
            if line.record is not None:
                records.append(line.record)
            elif len(problems) <= TOLD:
                problems[line.number] = f"{path} line {line.number} {line.problem}; it is passed over"
    except FileNotFoundError:
        pass
    except (OSError, Refused) as error:
        problems[-1] = f"{path} {error if isinstance(error, Refused) else f'cannot be read: {error.strerror}'}"
    for problem in list(problems.values())[:TOLD]:
        say(f"warning: {problem}")
    if len(problems) > TOLD:
        say(f"warning: {path}: other lines are passed over too")
    return records


def has_begun(path: Path) -> bool:
    """Whether there is a record of an iteration, or a line that may have been one."""
    try:
        return any(line.record is None or line.record["iteration"] > 0 for line in read_lines(path))
    except FileNotFoundError:
        return False
    except (OSError, Refused):
        return True


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line, whole or not at all; what was left of one is ended first. RunError: the disk takes no more."""
    content = (json.dumps(record) + "\n").encode()
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            size = os.lseek(handle, 0, os.SEEK_END)
            if size and os.pread(handle, 1, size - 1) != b"\n":
                content = b"\n" + content
            try:
                while content:
                    content = content[os.write(handle, content) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)  # where network file systems say what they could not write
    except OSError as error:
        told = disk_fault(error, path) or f"{path} cannot be written ({error.strerror}); see that it can"
        raise RunError(f"{told}, and continue with --resume") from error


def rewind(path: Path, iteration: int) -> int:
    """Forget what is after ``iteration``; how many lines, which cannot be read, were moved to ``metrics.unreadable`` beside it.

    OSError: it cannot be read or written.
    """
    moved: set[int] = set()
    with replacing(path) as temporary, temporary.open("wb") as kept, suppress(FileNotFoundError, Refused):
        for line in read_lines(path):
            if line.record is None:
                moved.add(line.number)
                with _open_aside(path) as aside:
                    aside.write(line.raw)
            elif line.record["iteration"] <= iteration:
                kept.write(line.raw.rstrip(b"\r\n") + b"\n")
    return len(moved)


def _open_aside(path: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path.with_name(UNREADABLE), flags, 0o666), "ab")
