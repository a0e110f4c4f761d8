"""TensorBoard's own reader finds everything."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from flowfactory import EvaluatedSample, RunInfo
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.trackers.tensorboard import TensorBoardConfig

Tracked = Callable[..., tuple[RunDirectory, list[str]]]


def events(path: Path) -> EventAccumulator:
    found = EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def test_every_metric_is_a_scalar_in_the_event_file(tracked: Tracked) -> None:
    directory, warned = tracked({"name": "tensorboard"})
    assert not warned
    found, records = events(directory.path), directory.records()
    names = {name for record in records for name in record} - {"iteration"}
    assert set(found.Tags()["scalars"]) == names
    for name in names:
        told = [(event.step, event.value) for event in found.Scalars(name)]
        expected = [(record["iteration"], record[name]) for record in records if name in record]
        assert [step for step, _ in told] == [iteration for iteration, _ in expected]
        assert [value for _, value in told] == pytest.approx([value for _, value in expected], rel=1e-6)
    assert set(found.Tags()["images"]) == {"heldout/000", "heldout/001"}
    assert [image.step for image in found.Images("heldout/000")] == [0, 1, 2]
    assert found.Images("heldout/001")[1].encoded_image_string == (directory.samples / "000001" / "001.png").read_bytes()


def test_a_resumed_run_shows_each_iteration_once(tracked: Tracked) -> None:
    tracked({"name": "tensorboard"}, iterations=3, how="stopped")
    directory, _ = tracked({"name": "tensorboard"}, iterations=3, resume=True)
    assert [event.step for event in events(directory.path).Scalars("loss")] == [1, 2, 3]


def test_without_media_there_are_figures_alone(tracked: Tracked) -> None:
    directory, _ = tracked({"name": "tensorboard", "media": False}, iterations=1)
    assert events(directory.path).Tags()["images"] == []


def test_pictures_are_as_they_are_on_disk_and_videos_move(info: RunInfo, samples: list[EvaluatedSample]) -> None:
    service = TensorBoardConfig().service()
    service.start(info)
    service.log(5, {"loss": 1.0}, samples)
    service.end("finished")
    found = events(info.directory)
    (picture,), (video,) = found.Images("heldout/000"), found.Images("heldout/001")
    assert picture.encoded_image_string == samples[0].path.read_bytes()
    assert (picture.width, picture.height, picture.step) == (24, 16, 5)
    with Image.open(io.BytesIO(video.encoded_image_string)) as gif:
        assert gif.n_frames == 12
    (caption,) = found.Tensors("heldout/000/caption/text_summary")
    assert b"a red fox  ocr 0.5000" in caption.tensor_proto.string_val[0]
    assert b"iterations: 3" in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
