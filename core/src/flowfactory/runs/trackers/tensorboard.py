"""TensorBoard event files in the run directory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flowfactory.config.yaml import dump
from flowfactory.errors import UserError
from flowfactory.hooks.evaluated_sample import EvaluatedSample
from flowfactory.runs.trackers.config import TrackerConfig
from flowfactory.runs.trackers.samples import caption, is_video, to_gif
from flowfactory.types import RunInfo


class TensorBoardConfig(TrackerConfig):
    """Metrics as scalars, and held-out samples, in ``<run>/tensorboard``."""

    known_as = ("tb", "tensorboardx")
    called: ClassVar[str] = "tensorboard"
    stays_in_run: ClassVar[bool] = True
    modules: ClassVar[tuple[str, ...]] = ("tensorboard",)

    def service(self) -> TensorBoard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("tracker 'tensorboard' needs: pip install 'flowfactory[tensorboard]'") from error
        return TensorBoard(SummaryWriter)


class TensorBoard:
    """Writes event files."""

    def __init__(self, writer: Any) -> None:
        self._make = writer
        self._writer: Any = None
        self._run: RunInfo | None = None

    def check(self) -> None:
        """There is nobody to ask."""

    def start(self, run: RunInfo) -> None:
        """Note where; the file is opened when it is known from which iteration on it holds what others hold already."""
        self._run = run

    def log(self, iteration: int, metrics: Mapping[str, float], samples: Sequence[EvaluatedSample]) -> None:
        """A scalar a metric, and an image a sample with its caption as text."""
        writer = self._open(iteration)
        for name, value in metrics.items():
            writer.add_scalar(name, value, iteration)
        for number, sample in enumerate(samples):
            self._show(f"heldout/{number:03d}", sample, iteration)
        writer.flush()

    def _open(self, iteration: int) -> Any:
        if self._writer is None:
            assert self._run is not None
            # what a run that is resumed had made after its last checkpoint is not shown any more
            self._writer = self._make(str(self._run.directory / "tensorboard"), purge_step=iteration)
            self._writer.add_text("config", _preformatted(dump(self._run.config)), iteration)
        return self._writer

    def _show(self, tag: str, sample: EvaluatedSample, iteration: int) -> None:
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        content = to_gif(sample.path) if is_video(sample) else sample.path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        # add_image would decode and encode it again, and takes no video
        self._writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), iteration)
        self._writer.add_text(f"{tag}/caption", caption(sample), iteration)

    def end(self, how: str) -> None:
        """Close the event file, if there is one yet."""
        if self._writer is not None:
            self._writer.close()


def _preformatted(text: str) -> str:
    """As it stands, in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())
