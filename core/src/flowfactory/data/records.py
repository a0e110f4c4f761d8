"""Records: pictures and videos that prompts bring to learn from, as a canvas takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.data.file_kinds import sort_of
from flowfactory.data.pictures import read_picture
from flowfactory.data.videos import read_video
from flowfactory.errors import UserError


def read_record(path: Path, canvas: Canvas, frame_rate: float | None = None) -> Tensor:
    """The picture [3, H, W], or the video [F, 3, H, W] of a ``canvas`` with frames, in [0, 1].

    It fills the canvas: what is beyond, of another shape, is cut off evenly on both sides. Of a video the frames nearest to
    ``frame_rate`` a second are taken, or the first. UserError: it cannot be read, or is not of the canvas' kind.
    """
    check_kind(path, canvas)
    if canvas.frames == 1:
        return _fill(read_picture(path), canvas)
    return torch.stack([_fill(frame, canvas) for frame in read_video(path, canvas.frames, frame_rate)])


def check_kind(path: Path, canvas: Canvas) -> None:
    """UserError: a picture is to be learned from where videos are drawn, or a video where pictures are."""
    is_video = sort_of(path) == "video"
    if is_video and canvas.frames == 1:
        raise UserError(f"{path} is a video, and the model draws pictures; bring pictures to learn from")
    if not is_video and canvas.frames > 1:
        raise UserError(
            f"{path} is a picture, and the model draws videos of {canvas.frames} frames; bring videos to learn from"
        )


def _fill(picture: Image.Image, canvas: Canvas) -> Tensor:
    fitted = ImageOps.fit(picture.convert("RGB"), (canvas.width, canvas.height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted, np.float32) / 255).permute(2, 0, 1)
