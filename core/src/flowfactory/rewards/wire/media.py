"""Media as files or numbers in a request, and back."""

from __future__ import annotations

import math
from fractions import Fraction
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from flowfactory.data.media import FRAME_RATE, import_pyav, to_pixels, to_uint8
from flowfactory.data.pictures import open_picture
from flowfactory.data.video_index import check_index
from flowfactory.data.videos import open_container
from flowfactory.rewards.wire.schema import Encoding, Medium, Part, WireError


def encode_medium(name: str, medium: Tensor, encoding: Encoding, frame_rate: float | None) -> tuple[dict[str, Any], Part]:
    """What is said of ``medium`` [C, H, W] or [F, C, H, W], and its part."""
    if encoding in ("raw", "raw8"):
        array = medium.float().numpy().astype("<f4") if encoding == "raw" else to_uint8(medium).numpy()
        dtype = "float32" if encoding == "raw" else "uint8"
        told = {"dtype": dtype, "shape": list(array.shape)}
        return _describe(Part(name, "application/octet-stream", array.tobytes()), **told)
    if medium.shape[-3] not in (1, 3):
        raise WireError(f"media have {medium.shape[-3]} channels; {encoding} has 1 or 3: write 'encoding: raw'")
    frames = to_pixels(medium)
    if medium.dim() == 4:
        return _describe(Part(name, "video/x-matroska", _encode_ffv1(frames, frame_rate or FRAME_RATE)))
    if encoding == "webp" and medium.shape[0] == 3:  # WebP knows no grey
        file = BytesIO()
        Image.fromarray(frames).save(file, format="WEBP", lossless=True, quality=0)
        return _describe(Part(name, "image/webp", file.getvalue()))
    return _describe(Part(name, "image/png", encode_png(frames)))


def _describe(part: Part, **more: Any) -> tuple[dict[str, Any], Part]:
    return {"part": part.name, "type": part.type, **more}, part


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """The file of ``picture`` [H, W, C], uint8, C 1 or 3."""
    file = BytesIO()
    # the least compression: time counts for more than bytes on the way to a server
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _encode_ffv1(frames: NDArray[np.uint8], frame_rate: float) -> bytes:
    """The file of ``frames`` [F, H, W, C]."""
    av = import_pyav()
    grey = frames.shape[-1] == 1
    file = BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=Fraction(frame_rate).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "gray" if grey else "bgr0"  # FFV1 has RGB in this order alone
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame[..., 0] if grey else frame, format="gray" if grey else "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()


class PixelBudget:
    """How many pixels may still be read."""

    def __init__(self, pixels: int) -> None:
        self._all = self._left = pixels

    def take(self, pixels: int) -> None:
        """WireError: there are not as many left."""
        self._left -= pixels
        if self._left < 0:
            raise WireError(f"media have more than {self._all} pixels together; send fewer in a request")


def decode_medium(medium: Medium, content: bytes | memoryview, room: PixelBudget) -> Tensor:
    """float32, [C, H, W] or [F, C, H, W]."""
    if medium.type == "application/octet-stream":
        return _decode_numbers(medium, content, room)
    try:
        frames = (
            _decode_picture(medium, content, room) if medium.type.startswith("image/") else _decode_video(medium, content, room)
        )
    except WireError as error:
        raise WireError(f"part {medium.part!r}: {error}") from error
    return torch.from_numpy(frames).movedim(-1, -3).contiguous().float() / 255


def _decode_numbers(medium: Medium, content: bytes | memoryview, room: PixelBudget) -> Tensor:
    assert medium.shape is not None
    size = math.prod(medium.shape) * (4 if medium.dtype == "float32" else 1)
    if len(content) != size:
        raise WireError(
            f"part {medium.part!r}: {medium.dtype} {list(medium.shape)} is {size} bytes, and there are {len(content)}"
        )
    room.take(math.prod(medium.shape) // medium.shape[-3])
    if medium.dtype == "float32":
        return torch.from_numpy(np.frombuffer(content, "<f4").reshape(medium.shape).astype(np.float32))
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(medium.shape).astype(np.float32)) / 255


def _decode_picture(medium: Medium, content: bytes | memoryview, room: PixelBudget) -> NDArray[np.uint8]:
    """[H, W, C]."""
    kind = medium.type.removeprefix("image/").upper()
    try:
        with open_picture(BytesIO(content), (kind,)) as picture:
            room.take(picture.width * picture.height)
            if picture.mode not in ("L", "RGB"):
                raise WireError(f"its mode is {picture.mode}; write it with 8 bits, grey or RGB")
            array = np.array(picture)
    except WireError:
        raise
    except Exception as error:  # Pillow raises whatever a decoder stumbles over
        raise WireError(f"no {kind} that can be read{_reason(error)}") from error
    return array if array.ndim == 3 else array[..., None]


def count_pixels(name: str, content: bytes | memoryview, room: PixelBudget) -> None:
    """Take the pixels of the picture in ``content`` from ``room``. WireError: there are not as many, or it is none."""
    try:
        with open_picture(BytesIO(content)) as picture:
            room.take(picture.width * picture.height)
    except WireError:
        raise
    except Exception as error:
        raise WireError(f"part {name!r}: no picture that can be read{_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What Pillow says of it, unless that is the address of what was to be read."""
    return "" if isinstance(error, UnidentifiedImageError) else f": {error}"


def _decode_video(medium: Medium, content: bytes | memoryview, room: PixelBudget) -> NDArray[np.uint8]:
    """[F, H, W, C]."""
    import_pyav()  # whose absence is no fault of the request
    frames: list[NDArray[np.uint8]] = []
    try:
        kind = "mov" if medium.type == "video/mp4" else "matroska"
        file = BytesIO(content)
        with open_container(file, check_index(file, len(content)), (kind,)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            height, width = stream.codec_context.height, stream.codec_context.width
            pixels = "gray" if stream.codec_context.pix_fmt == "gray" else "rgb24"
            room.take(height * width)
            for frame in container.decode(stream):
                if (frame.height, frame.width) != (height, width):
                    raise WireError("its frames differ in size")
                if frames:
                    room.take(height * width)
                frames.append(frame.to_ndarray(format=pixels))
    except WireError:
        raise
    except Exception as error:  # as for pictures
        raise WireError(f"no video that can be read: {error}") from error
    if not frames:
        raise WireError("a video without frames")
    clip: NDArray[np.uint8] = np.stack(frames)
    return clip if clip.ndim == 4 else clip[..., None]
