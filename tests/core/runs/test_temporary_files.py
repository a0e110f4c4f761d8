"""What a run does about the cache that it is given, and about what an earlier one left when it was killed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowfactory.atomic_files import make_temporary_folder
from flowfactory.config.schema import RunConfig
from flowfactory.data.cache_folder import CacheFolder
from flowfactory.errors import UserError
from flowfactory.hooks.calls import Hooks
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.train import train
from flowfactory.training.setup import prepare_run

Load = Callable[..., RunConfig]
Figures = Callable[[RunDirectory], list[dict[str, Any]]]
SHORT = {"training": {"iterations": 1}}


def encoded(told: list[str]) -> str:
    (line,) = [line for line in told if "encoded now" in line]
    return line.split(", ")[1]


def test_a_run_goes_on_where_the_cache_cannot_be_written_to(
    load: Load, figures: Figures, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_cache = train(load(SHORT, "one"), say=lambda _: None)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "file"))
    told: list[str] = []
    without = train(load(SHORT, "two"), say=told.append)
    (line,) = [line for line in told if "FLOWFACTORY_CACHE" in line]
    assert line == (
        f"warning: {tmp_path / 'file/conditions'} cannot be written to (Not a directory): what is encoded now is kept in "
        "memory alone; make room there, or choose another folder with FLOWFACTORY_CACHE"
    )
    assert figures(with_cache) == figures(without)


def test_a_second_run_encodes_nothing_though_the_limit_is_too_low_for_its_prompts(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE_SIZE", "10B")
    first: list[str] = []
    second: list[str] = []
    prepare_run(load(SHORT), say=first.append)
    prepare_run(load(SHORT), say=second.append)
    assert encoded(first) != "0 encoded now"
    assert encoded(second) == "0 encoded now"
    assert sum("FLOWFACTORY_CACHE_SIZE" in line for line in first) == 1


def test_another_runs_prompts_make_room(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare_run(load(SHORT))
    cache = CacheFolder(tmp_path / "cache")
    before = cache.entries()
    for file in before:
        os.utime(file.path, times=(time.time() - 7200,) * 2)
    monkeypatch.setenv("FLOWFACTORY_CACHE_SIZE", "10B")
    config = load(SHORT)
    (tmp_path / "train.txt").write_text("violet\nwhite\n")
    prepare_run(config)
    kept = {file.path for file in cache.entries()} & {file.path for file in before}
    assert 0 < len(kept) < len(before), "of what is common to both, all"


def test_a_size_that_is_none_is_told_before_weights_are_read(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE_SIZE", "50")
    loaded: list[object] = []
    monkeypatch.setattr(Hooks, "load", loaded.append)
    with pytest.raises(UserError, match="FLOWFACTORY_CACHE_SIZE: got '50'"):
        prepare_run(load())
    assert loaded == []


def test_what_killed_writes_left_in_a_run_directory_goes_a_day_later(load: Load, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    samples = directory.samples / "000000"
    samples.mkdir(parents=True)
    left = [make_temporary_folder(folder) for folder in (directory.path, samples)]
    young = make_temporary_folder(samples)
    mine = samples / "notes.writing"
    mine.touch()
    for path in (*left, mine):
        os.utime(path, times=(time.time() - 90_000,) * 2)
    directory.open(load(), resume=False)
    assert not any(path.exists() for path in left)
    assert young.exists()
    assert mine.exists()
