"""What the tests of trackers share: held-out samples, and a run that keeps its tracker's warnings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from flowfactory import EvaluatedSample, RunInfo, hookimpl
from flowfactory.config.schema import RunConfig
from flowfactory.data.media import write_media
from flowfactory.errors import Interrupted, RunError
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.train import train

ENDS = {"stopped": Interrupted("asked to stop"), "failed": RunError("the loss is not finite")}


class End:
    """Ends the run after its first iteration."""

    def __init__(self, how: str) -> None:
        self.how = how

    @hookimpl(trylast=True)
    def iteration_finished(self, iteration: int) -> None:
        if iteration == 1:
            raise ENDS[self.how]


@pytest.fixture
def tracked(load: Callable[..., RunConfig]) -> Callable[..., tuple[RunDirectory, list[str]]]:
    """Trains with a tracker to an end; the run directory, and the warnings. One iteration a checkpoint."""

    def run(
        tracker: Mapping[str, Any], iterations: int = 2, resume: bool = False, how: str = "finished", out: str = "run"
    ) -> tuple[RunDirectory, list[str]]:
        changes = {
            "output": {"trackers": [dict(tracker)], "checkpoint_every": 1},
            "training": {"iterations": iterations},
            "evaluation": {"every": 1},
        }
        config, said = load(changes, out), list[str]()
        ended = pytest.raises(type(ENDS[how]), match=str(ENDS[how])) if how in ENDS else nullcontext()
        with ended:
            train(config, resume, [End(how)] if how in ENDS else [], said.append)
        return RunDirectory(config.output.dir), [line for line in said if line.startswith("warning: tracker")]

    return run


@pytest.fixture
def samples(tmp_path: Path) -> list[EvaluatedSample]:
    """A picture and a video of 12 frames."""
    generator = torch.Generator().manual_seed(1)
    picture = write_media(torch.rand(3, 16, 24, generator=generator), tmp_path / "000")
    video = write_media(torch.rand(12, 3, 16, 24, generator=generator), tmp_path / "001", 6.0)
    assert (picture.suffix, video.suffix) == (".png", ".mp4")
    return [EvaluatedSample(picture, "a red fox", {"ocr": 0.5}), EvaluatedSample(video, "ein Füchslein, das läuft", {})]


@pytest.fixture
def info(load: Callable[..., RunConfig], tmp_path: Path) -> RunInfo:
    """A run whose directory is there."""
    config = load()
    config.output.dir.mkdir(parents=True)
    return RunInfo(config.output.dir, config, 3, pytest.fail)
