"""metrics.jsonl, as a kill, a full disk, an editor or a stranger leaves it."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowfactory.config.schema import RunConfig
from flowfactory.errors import RunError
from flowfactory.runs import metrics_file
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.train import train

GOOD = b'{"iteration": 1, "loss": 0.5}\n'
BAD = {
    "cut": (b'{"iteration": 2, "lo\n', "is no JSON"),
    "not UTF-8": (b'{"iteration": 2, "a": "\xff\xfe"}\n', "is no UTF-8"),
    "NUL": (b"\0" * 100 + b"\n", "is no JSON"),
    "no object": (b"[2, 3]\n", "is no JSON object"),
    "no iteration": (b'{"loss": 1}\n', "has no iteration"),
    "NaN as iteration": (b'{"iteration": NaN}\n', "has no iteration"),
    "iteration as text": (b'{"iteration": "2"}\n', "has no iteration"),
    "negative": (b'{"iteration": -1}\n', "has no iteration"),
    "deep": (b'{"iteration": 2, "a": ' + b"[" * 100_000 + b"\n", "is nested more than 32 deep"),
    "an enormous number": (b'{"iteration": 2, "loss": 1' + b"0" * 5000 + b"}\n", "is no JSON"),
    "enormous": (b'{"iteration": 2, "a": "' + b"x" * (metrics_file.LONGEST_LINE * 2) + b'"}\n', "is longer than 4 MiB"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_line_that_cannot_be_read_costs_that_line_and_is_put_aside(tmp_path: Path, kind: str) -> None:
    raw, problem = BAD[kind]
    directory, said = RunDirectory(tmp_path), list[str]()
    third = b'{"iteration": 3}\n'
    directory.metrics.write_bytes(GOOD + raw + third)
    assert directory.records(said.append) == [{"iteration": 1, "loss": 0.5}, {"iteration": 3}]
    assert said == [f"warning: {directory.metrics} line 2 {problem}; it is passed over"]
    assert directory.rewind(2) == 1
    assert directory.metrics.read_bytes() == GOOD
    assert (tmp_path / metrics_file.UNREADABLE).read_bytes() == raw


def test_of_many_lines_that_cannot_be_read_few_are_told(tmp_path: Path) -> None:
    directory, said = RunDirectory(tmp_path), list[str]()
    directory.metrics.write_bytes((GOOD.decode() * 50).encode("utf-16"))
    assert directory.records(said.append) == []
    assert len(said) == 4
    assert directory.rewind(5) > 1
    assert (tmp_path / metrics_file.UNREADABLE).read_bytes() == (GOOD.decode() * 50).encode("utf-16")


def test_what_is_no_finite_number_is_no_metric_and_stays_in_the_file(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.metrics.write_text(
        '{"iteration": 1, "kl": NaN, "loss": Infinity, "name": "x", "ok": true, "lr": 1e-4, "big": 1e999}\n'
    )
    before = directory.metrics.read_bytes()
    assert directory.records(pytest.fail) == [{"iteration": 1, "lr": 1e-4}]
    directory.rewind(1)
    assert directory.metrics.read_bytes() == before


def test_a_line_that_was_cut_does_not_swallow_the_next(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.metrics.write_bytes(GOOD + b'{"iteration": 2, "lo')
    directory.append({"iteration": 3})
    assert directory.records() == [{"iteration": 1, "loss": 0.5}, {"iteration": 3}]


def test_a_line_that_does_not_fit_leaves_nothing_of_it(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append({"iteration": 1})
    before = directory.metrics.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))  # which some of the line fits in
    try:
        with pytest.raises(
            RunError, match=rf"^{directory.metrics} cannot be written \(File too large\); make room, and continue"
        ):
            directory.append({"iteration": 2, "loss": 0.25})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert directory.metrics.read_bytes() == before


NO_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "fifo": (os.mkfifo, "is no file"),
    "folder": (os.mkdir, "is no file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "leads out of"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_costs_the_metrics_and_no_time(tmp_path: Path, kind: str) -> None:
    (make, problem), directory, said = NO_FILES[kind], RunDirectory(tmp_path), list[str]()
    make(directory.metrics)
    assert directory.records(said.append) == []
    assert len(said) == 1
    assert said[0].startswith(f"warning: {directory.metrics} {problem}")


def test_lines_put_aside_do_not_follow_a_link(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    (tmp_path / "other").write_text("mine\n")
    (tmp_path / metrics_file.UNREADABLE).symlink_to("other")
    directory.metrics.write_bytes(GOOD + b"{\n")
    with pytest.raises(OSError, match="symbolic links"):
        directory.rewind(1)
    assert (tmp_path / "other").read_text() == "mine\n"
    assert directory.metrics.read_bytes() == GOOD + b"{\n"


def test_a_run_whose_metrics_were_damaged_is_resumed_reported_and_loses_no_byte(
    load: Callable[..., RunConfig], invoke: Callable[..., tuple[int, str, str]], figures: Callable[..., list[dict[str, Any]]]
) -> None:
    directory, said = train(load({"training": {"iterations": 2}}), say=lambda _: None), list[str]()
    lines = directory.metrics.read_bytes().splitlines(keepends=True)
    damaged = lines[1][:40] + b"\xff\n"
    directory.metrics.write_bytes(b"".join([lines[0], damaged, lines[2], b'{"iteration": 3, "lo']))
    code, out, err = invoke("report", directory.path)
    assert (code, out) == (0, f"{directory.report}\n")
    assert err.splitlines() == [
        f"warning: {directory.metrics} line 2 is no UTF-8; it is passed over",
        f"warning: {directory.metrics} line 4 is no JSON; it is passed over",
    ]
    train(load({"training": {"iterations": 4}}), resume=True, say=said.append)
    assert [record["iteration"] for record in directory.records(pytest.fail)] == [0, 2, 3, 4]
    aside = directory.path / "metrics.unreadable"
    assert aside.read_bytes() == damaged + b'{"iteration": 3, "lo'
    assert f"warning: 2 lines that cannot be read were moved from metrics.jsonl to {aside}" in said
    assert json.loads(directory.metrics.read_text().splitlines()[1]) == json.loads(lines[2])
