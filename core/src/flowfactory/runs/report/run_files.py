"""A run directory as the report reads it: a stranger's as well, as data of bounded size. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from flowfactory.config.yaml import parse_yaml
from flowfactory.errors import UserError
from flowfactory.runs import metrics_file
from flowfactory.runs.doctor.table import Table
from flowfactory.runs.facts import FACTS, LARGEST
from flowfactory.runs.report.series import Point, read_columns
from flowfactory.untrusted_files import Refused, parse_json, read_bytes

CONFIG, METRICS, LARGEST_CONFIG = "config.yaml", "metrics.jsonl", 2**19
T = TypeVar("T")
Say = Callable[[str], None]


@dataclass(frozen=True)
class RunFiles:
    """What lies in the run directory ``path``: the ``config`` as it is written, ``records`` of metrics, and ``facts``."""

    path: Path
    config: str
    records: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """That of the folder."""
        return self.path.absolute().name or str(self.path)

    @cached_property
    def written(self) -> Mapping[str, Any]:
        """The config as YAML has it, whose components need not be on this machine; empty where it is none."""
        try:
            found = parse_yaml(self.config, CONFIG)
        except UserError:
            return {}
        return found if isinstance(found, Mapping) else {}

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the distributions that the run was made with."""
        found = self.table.fact("versions")
        return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, Mapping) else {}

    @cached_property
    def table(self) -> Table:
        """The run as the doctor's rules see it."""
        return Table(self.records, self.written, self.facts)

    @cached_property
    def columns(self) -> dict[str, list[Point]]:
        """Every metric by its name, in the order of the iterations."""
        return read_columns(self.records)

    def key(self, path: str) -> Any:
        """The value of a key of the config; None where it is not there."""
        return self.table.key(path)

    def held_out(self) -> dict[str, list[Point]]:
        """The points of each held-out score by its label."""
        return self.by_label("eval")

    def rewards(self) -> dict[str, list[Point]]:
        """The points of each training reward by its label."""
        return self.by_label("reward")

    def by_label(self, kind: str) -> dict[str, list[Point]]:
        """The points of ``<kind>/<label>/mean`` by label."""
        prefix, suffix = f"{kind}/", "/mean"
        names = (name for name in self.columns if name.startswith(prefix) and name.endswith(suffix))
        return {name[len(prefix) : -len(suffix)]: self.columns[name] for name in names if len(name) > len(prefix + suffix)}

    def evaluated(self) -> list[int]:
        """The iterations after which there was an evaluation."""
        columns = (points for name, points in self.columns.items() if name.startswith("eval/"))
        return sorted({point.iteration for points in columns for point in points})

    @property
    def last_iteration(self) -> int:
        """The last one that has a record."""
        return max((int(record["iteration"]) for record in self.records), default=0)


def read_run(folder: Path, say: Say) -> RunFiles:
    """What is in ``folder``; ``say`` hears of what is left out, as it is no file of a run."""
    config = _read(folder / CONFIG, LARGEST_CONFIG, lambda content: content.decode("utf-8", "replace"), "", say)
    return RunFiles(
        folder, config, metrics_file.read_records(folder / METRICS, say), _read(folder / FACTS, LARGEST, _mapping, {}, say)
    )


def require_run(folder: Path) -> None:
    """UserError: this is no run directory."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is no run directory: it has no {CONFIG}")


def _read(path: Path, limit: int, parse: Callable[[bytes], T], absent: T, say: Say) -> T:
    """What ``parse`` makes of a file of the run directory, at most ``limit`` bytes; ``absent`` where there is no such file."""
    try:
        return parse(read_bytes(path, limit, within=path.parent))
    except FileNotFoundError:
        return absent
    except (Refused, OSError) as error:
        say(f"warning: {path} {error if isinstance(error, Refused) else error.strerror}; left out")
        return absent


def _mapping(content: bytes) -> dict[str, Any]:
    """Refused: it is no JSON object."""
    found = parse_json(content)
    if not isinstance(found, dict):
        raise Refused("is no JSON object")
    return found
