"""SwanLab, offline: what the library itself wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowfactory import EvaluatedSample, RunInfo, UserError
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.facts import read_facts
from flowfactory.runs.trackers.samples import to_gif
from flowfactory.runs.trackers.swanlab import SwanLabConfig

swanlab: Any = pytest.importorskip("swanlab")
pytestmark = pytest.mark.filterwarnings("ignore")
Tracked = Callable[..., tuple[RunDirectory, list[str]]]


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No account of whoever runs the tests, and no network."""
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    monkeypatch.setenv("SWANLAB_SAVE_DIR", str(tmp_path / "swanlab"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)


def test_every_metric_and_every_held_out_picture_is_there(tracked: Tracked, capsys: pytest.CaptureFixture[str]) -> None:
    directory, warned = tracked({"name": "swanlab", "project": "p"})
    assert not warned
    (part,) = directory.path.glob("swanlab/run-*")
    log = next(part.glob("*.swanlab")).read_bytes()
    for name in directory.records()[-1]:
        assert name == "iteration" or name.encode() in log
    assert b"black  bright 0." in log
    assert len(list(part.glob("media/image/*.png"))) == 6
    config = yaml.safe_load((part / "files" / "config.yaml").read_text())
    assert "iterations" in str(config["training"])
    assert capsys.readouterr().out == ""


def test_a_resumed_run_is_the_same_experiment(tracked: Tracked) -> None:
    tracked({"name": "swanlab"}, how="failed")
    directory, warned = tracked({"name": "swanlab"}, resume=True)
    assert not warned
    number = read_facts(directory.facts)["trackers"]["swanlab:/flowfactory"]
    assert [path.name.rpartition("-")[2] for path in directory.path.glob("swanlab/run-*")] == [number] * 2


def test_a_video_is_a_gif(info: RunInfo, samples: list[EvaluatedSample]) -> None:
    service = SwanLabConfig(mode="offline").service()
    service.start(info)
    service.log(3, {"loss": 1.0}, samples[1:])
    service.end("finished")
    (gif,) = info.directory.glob("swanlab/run-*/media/*/003-*.gif")
    assert gif.read_bytes() == to_gif(samples[1].path)


def test_without_a_key_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_MODE", "online")
    with pytest.raises(UserError, match=r"has no API key; run swanlab login, set SWANLAB_API_KEY, or choose mode: offline$"):
        SwanLabConfig().service().check()
    SwanLabConfig(mode="local").service().check()
