"""Two tables in the run directory, for whoever has a spreadsheet and no library."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from flowfactory.atomic_files import replacing
from flowfactory.errors import UserError
from flowfactory.hooks.evaluated_sample import EvaluatedSample
from flowfactory.runs.trackers.config import TrackerConfig
from flowfactory.types import RunInfo
from flowfactory.untrusted_files import leads_into

ITERATION = "iteration"


class CsvConfig(TrackerConfig):
    """Metrics in ``<run>/csv/metrics.csv``, prompts and scores of held-out samples in ``<run>/csv/samples.csv``."""

    called: ClassVar[str] = "csv"
    stays_in_run: ClassVar[bool] = True

    def service(self) -> CsvFiles:
        return CsvFiles()


class CsvFiles:
    """Writes the tables."""

    def __init__(self) -> None:
        self._folder = Path()
        self._metrics: Table | None = None
        self._samples: Table | None = None

    def check(self) -> None:
        """There is nobody to ask."""

    def start(self, run: RunInfo) -> None:
        """Make the folder."""
        self._folder = run.directory
        folder = run.directory / "csv"
        folder.mkdir(exist_ok=True)
        if not leads_into(folder, run.directory):
            raise UserError(f"{folder} leads out of {run.directory}; remove the link")
        self._metrics, self._samples = (Table(folder / name) for name in ("metrics.csv", "samples.csv"))

    def log(self, iteration: int, metrics: Mapping[str, float], samples: Sequence[EvaluatedSample]) -> None:
        """A row an iteration, and a row a sample."""
        assert self._metrics is not None
        assert self._samples is not None
        self._metrics.add(iteration, [metrics])
        rows = [{"file": _relative(one.path, self._folder), "prompt": one.prompt, **one.scores} for one in samples]
        self._samples.add(iteration, rows)

    def end(self, how: str) -> None:
        """Every row is on the disk already."""


class Table:
    """A CSV file with a header, whose columns become more as they come; rows from a resumed run's first iteration on go."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] | None = None  # None: the file was not read yet

    def add(self, iteration: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add ``rows`` of ``iteration``. OSError: they cannot be written."""
        if self._columns is None:
            self._columns = self._rewrite(iteration, [])
        columns = list(dict.fromkeys([*self._columns, *(column for row in rows for column in row)]))
        if columns != self._columns:
            self._columns = self._rewrite(iteration, columns)
        # not through a link that was put in its place
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(handle, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, [ITERATION, *self._columns]).writerows({ITERATION: iteration, **row} for row in rows)

    def _rewrite(self, before: int, columns: list[str]) -> list[str]:
        """Have the rows of iterations ``before`` this one below a header of the ``columns``, or of those that are there."""
        kept: list[dict[str, str]] = []
        if self._path.is_file() and not self._path.is_symlink():
            with self._path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                columns = columns or [name for name in reader.fieldnames or () if name != ITERATION]
                kept = [row for row in reader if row[ITERATION].isdigit() and int(row[ITERATION]) < before]
        with replacing(self._path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [ITERATION, *columns], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        return columns


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
