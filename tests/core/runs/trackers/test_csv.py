"""The tables of the tracker that needs no library."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from flowfactory import RunInfo, UserError
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.trackers.csv_files import CsvConfig, Table

Tracked = Callable[..., tuple[RunDirectory, list[str]]]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_metric_is_in_the_table_and_every_sample_with_its_score(tracked: Tracked) -> None:
    directory, warned = tracked({"name": "csv"})
    assert not warned
    rows, records = read(directory.path / "csv" / "metrics.csv"), directory.records()
    assert [int(row["iteration"]) for row in rows] == [0, 1, 2]
    for row, record in zip(rows, records, strict=True):
        assert {name: float(value) for name, value in row.items() if value} == pytest.approx(record, abs=0)
    samples = read(directory.path / "csv" / "samples.csv")
    assert [(row["iteration"], row["file"], row["prompt"]) for row in samples[:2]] == [
        ("0", "samples/000000/000.png", "black"),
        ("0", "samples/000000/001.png", "orange"),
    ]
    assert float(samples[-1]["bright"]) == directory.read_samples(2)[1]["scores"]["bright"]
    assert all((directory.path / row["file"]).is_file() for row in samples)


def test_a_resumed_run_goes_on_in_the_same_table(tracked: Tracked) -> None:
    whole, _ = tracked({"name": "csv"}, iterations=3, out="whole")
    tracked({"name": "csv"}, iterations=3, how="failed")
    directory, _ = tracked({"name": "csv"}, iterations=3, resume=True)
    for name in ("metrics.csv", "samples.csv"):
        here, there = (read(one.path / "csv" / name) for one in (directory, whole))
        assert [row["iteration"] for row in here] == [row["iteration"] for row in there]
    columns = ("iteration", "loss", "reward/bright/mean", "eval/bright/mean")
    tables = [[[row[c] for c in columns] for row in read(one.path / "csv" / "metrics.csv")] for one in (directory, whole)]
    assert tables[0] == tables[1]


def test_columns_that_come_later_are_empty_before_and_rows_that_are_made_again_go(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    first = Table(path)
    first.add(1, [{"a": 1.5}])
    first.add(2, [{"b": 2, "a": 'x, "y"\nz'}])
    first.add(3, [])
    assert read(path) == [
        {"iteration": "1", "a": "1.5", "b": ""},
        {"iteration": "2", "a": 'x, "y"\nz', "b": "2"},
    ]
    again = Table(path)
    again.add(2, [{"c": 3}, {"c": 4}])
    assert [(row["iteration"], row["a"], row["c"]) for row in read(path)] == [("1", "1.5", ""), ("2", "", "3"), ("2", "", "4")]


def test_nothing_is_written_through_a_link(info: RunInfo, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "metrics.csv").write_text("iteration,a\n1,2\n")
    (info.directory / "csv").symlink_to(elsewhere)
    with pytest.raises(UserError, match="leads out of"):
        CsvConfig().service().start(info)
    (info.directory / "csv").unlink()
    service = CsvConfig().service()
    service.start(info)
    (info.directory / "csv" / "metrics.csv").symlink_to(elsewhere / "metrics.csv")
    service.log(1, {"b": 1.0}, [])
    assert read(info.directory / "csv" / "metrics.csv") == [{"iteration": "1", "b": "1.0"}]
    assert (elsewhere / "metrics.csv").read_text() == "iteration,a\n1,2\n"


def test_a_row_more_is_one_write_at_the_end(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.csv")
    table.add(1, [{"a": 1.0}])
    inode, size = (tmp_path / "t.csv").stat().st_ino, (tmp_path / "t.csv").stat().st_size
    for number in range(2, 100):
        table.add(number, [{"a": 1.0}])
    assert (tmp_path / "t.csv").stat().st_ino == inode  # not written anew
    assert (tmp_path / "t.csv").stat().st_size > size
