"""Trackio: what its own storage holds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowfactory import EvaluatedSample, RunInfo, UserError
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.facts import read_facts
from flowfactory.runs.trackers.trackio import TrackioConfig

trackio: Any = pytest.importorskip("trackio")
pytestmark = pytest.mark.filterwarnings("ignore")
Tracked = Callable[..., tuple[RunDirectory, list[str]]]


@pytest.fixture(autouse=True)
def storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Runs of the test alone, and no account."""
    from trackio import sqlite_storage, utils

    folder = tmp_path / "trackio"
    for module in [module for name, module in sys.modules.items() if name.startswith("trackio")]:
        for name in ("TRACKIO_DIR", "MEDIA_DIR"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, folder / ("media" if name == "MEDIA_DIR" else ""))
    assert folder == utils.TRACKIO_DIR
    monkeypatch.delenv("TRACKIO_SPACE_ID", raising=False)
    return sqlite_storage.SQLiteStorage


def name_of(directory: RunDirectory) -> str:
    name: str = read_facts(directory.facts)["trackers"]["trackio:flowfactory"]
    return name


def test_every_metric_and_every_held_out_picture_is_there(
    tracked: Tracked, storage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, warned = tracked({"name": "trackio"})
    assert not warned
    assert name_of(directory).startswith("run-")
    rows = storage.get_logs("flowfactory", name_of(directory))
    for row, record in zip(rows, directory.records(), strict=True):
        assert row["step"] == record.pop("iteration")
        assert {name: row[name] for name in record} == pytest.approx(record)
        assert row["heldout/000"]["_type"] == "trackio.image"
        assert row["heldout/000"]["caption"].startswith("black  bright 0.")
        assert (tmp_path / "trackio" / "media" / row["heldout/001"]["file_path"]).is_file()
    assert capsys.readouterr().out == ""


def test_a_resumed_run_is_the_same_run_and_another_is_another(tracked: Tracked, storage: Any) -> None:
    tracked({"name": "trackio"}, how="failed")
    directory, warned = tracked({"name": "trackio"}, resume=True)
    other, _ = tracked({"name": "trackio"}, iterations=1, out="other/run")
    assert not warned
    assert name_of(directory) != name_of(other)
    steps = [row["step"] for row in storage.get_logs("flowfactory", name_of(directory))]
    assert (set(steps), steps[-1]) == ({0, 1, 2}, 2)
    assert [row["step"] for row in storage.get_logs("flowfactory", name_of(other))] == [0, 1]


def test_a_video_is_a_video(info: RunInfo, samples: list[EvaluatedSample], storage: Any, tmp_path: Path) -> None:
    said: list[str] = []
    service = TrackioConfig(run_name="mine").service()
    service.start(RunInfo(info.directory, info.config, 3, said.append))
    service.log(3, {"loss": 1.0}, samples)
    service.end("finished")
    assert said == ["trackio: trackio show --project flowfactory"]
    (row,) = storage.get_logs("flowfactory", "mine")
    assert row["heldout/001"]["_type"] == "trackio.video"
    assert (tmp_path / "trackio" / "media" / row["heldout/001"]["file_path"]).suffix == ".mp4"


def test_a_space_without_an_account_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    TrackioConfig().service().check()
    code = "from flowfactory.runs.trackers.trackio import TrackioConfig; TrackioConfig(space='me/runs').service().check()"
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("nobody is logged in; run hf auth login, or set HF_TOKEN")
    assert UserError.__name__ in done.stderr.splitlines()[-1]
