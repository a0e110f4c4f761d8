"""Samples as pixels and as files, and what tells one file from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from flowfactory.atomic_files import replacing
from flowfactory.errors import UserError
from flowfactory.untrusted_files import Refused, open_regular

if TYPE_CHECKING:
    from torch import Tensor

FRAME_RATE = 8.0  # of clips whose model does not say


def to_uint8(media: Tensor) -> Tensor:
    """uint8 of media in [0, 1]: what an 8-bit file keeps."""
    return (media.detach().float().clamp(0, 1) * 255).round().byte()


def to_pixels(media: Tensor) -> NDArray[np.uint8]:
    """uint8 [..., H, W, C] of media [..., C, H, W] in [0, 1], as they would be on disk."""
    pixels: NDArray[np.uint8] = to_uint8(media).movedim(-3, -1).cpu().numpy()
    return pixels


def write_media(medium: Tensor, path: Path, frame_rate: float | None = None) -> Path:
    """The file: ``path`` with .png for [C, H, W] and for one frame, with .mp4 for [F, C, H, W]; media in [0, 1].

    It is written under a temporary name and renamed.
    """
    frames = medium[None] if medium.dim() == 3 else medium
    # Pillow takes grey pictures without a channel axis
    pictures = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in to_pixels(frames)]
    final = path.with_name(path.name + (".png" if len(pictures) == 1 else ".mp4"))
    with replacing(final) as temporary:
        if len(pictures) == 1:
            pictures[0].save(temporary, format="PNG")
        else:
            encode_video(pictures, temporary, frame_rate or FRAME_RATE)
    return final


def encode_video(pictures: Iterable[Image.Image], path: Path, frame_rate: float, loss: int = 18) -> None:
    """Write ``pictures``, one or more of one size, to ``path`` as an MP4 that browsers play.

    ``loss`` is x264's ``crf``: hardly any is seen at 18, and some at 28.
    """
    av = import_pyav()
    following = iter(pictures)
    first = next(following)
    width, height = first.size
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(frame_rate).limit_denominator(1001))
        # browsers play 4:2:0 alone, which wants even sides
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.options = {"crf": str(loss)}
        for picture in chain([first], following):
            whole = picture.convert("RGB")
            if whole.size != (stream.width, stream.height):
                whole = ImageOps.pad(whole, (stream.width, stream.height), centering=(0, 0))
            for packet in stream.encode(av.VideoFrame.from_image(whole)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def import_pyav() -> Any:
    """PyAV's module. UserError, with the command that installs it: it is missing."""
    try:
        import av
    except ImportError as error:
        raise UserError("videos need PyAV: pip install 'flowfactory[video]'") from error
    return av


def file_digest(path: Path) -> str:
    """What changes when the bytes of the file do. UserError: it cannot be read."""
    try:
        facts = path.stat()
        return _digest(path, facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except Refused as refused:
        raise UserError(f"{path}: {refused}; write the path of one") from refused


@lru_cache(maxsize=100_000)
def _digest(path: Path, size: int, changed: int) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
