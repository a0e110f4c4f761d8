"""Samples of a run directory as parts of a page: decoded, and encoded anew, so that nothing of the file itself gets there."""

from __future__ import annotations

import tempfile
from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, features

from flowfactory.data.media import encode_video, import_pyav
from flowfactory.data.pictures import open_picture
from flowfactory.data.video_index import check_index
from flowfactory.data.videos import open_container
from flowfactory.errors import UserError
from flowfactory.untrusted_files import Refused, read_bytes

LARGEST_FILE = 256 * 2**20
MOST_PIXELS = 64 * 10**6
"""Of a picture, and of each frame of a video."""
MOST_PIXELS_OF_A_VIDEO = 2 * 10**9
FRAME_RATES = (0.01, 1000.0)
SHARP, SMALLEST = 128, 32
"""Pixels of the longer side up to which a picture is embedded pixel for pixel, and to which it is shrunk at the most."""
LOSS, QUALITY = 24, 80
"""Of videos and pictures that are shrunk: ``crf`` of x264, and ``quality`` of WebP or JPEG."""


def data_url(path: Path, within: Path, side: int, most: int) -> str:
    """The PNG, or the WebP or the MP4 where its name ends so, as a URL that holds it.

    Its longer side has at most ``side`` pixels; a picture is shrunk further to take no more than ``most`` bytes.

    Refused: it is none, too large, or elsewhere.
    """
    try:
        content = read_bytes(path, LARGEST_FILE, within)
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from error
    if path.suffix == ".mp4":
        kind, encoded = "video/mp4", encode_video_anew(content, side)
    else:
        kind, encoded = encode_picture_anew(content, side, most, "WEBP" if path.suffix == ".webp" else "PNG")
    return f"data:{kind};base64,{b64encode(encoded).decode()}"


def count_pixels(path: Path, within: Path) -> int:
    """How many a picture has, or all frames of a video, as far as its header tells; 0 where it tells nothing."""
    try:
        content = read_bytes(path, LARGEST_FILE, within)
        if path.suffix != ".mp4":
            width, height = open_picture(BytesIO(content), ("PNG",)).size
            return width * height
        file = BytesIO(content)
        with open_container(file, check_index(file, len(content)), ("mov",)) as container:
            stream = container.streams.video[0]
            return int(stream.width * stream.height * stream.frames)
    except Exception:  # whatever a decoder stumbles over is told when it is decoded
        return 0


def encode_picture_anew(
    content: bytes, side: int = MOST_PIXELS, most: int = LARGEST_FILE, read: str = "PNG"
) -> tuple[str, bytes]:
    """The type and the bytes of a picture with the pixels of one to ``read`` and nothing else: PNG, or shrunk to ``side``.

    Refused: it is none, or too large.
    """
    try:
        picture = open_picture(BytesIO(content), (read,))
        if picture.width * picture.height > MOST_PIXELS:
            raise Refused(f"has more than {MOST_PIXELS // 10**6} megapixels")
        pixels = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
        alone = Image.frombytes(pixels.mode, pixels.size, pixels.tobytes())  # without what else it tells
    except Refused:
        raise
    except Exception as error:  # Pillow raises whatever a decoder stumbles over
        raise Refused(f"is no {read} that can be read") from error
    # what is half again too large as it is will hardly fit anew
    if side >= MOST_PIXELS or (max(alone.size) <= min(side, SHARP) and len(content) <= 1.5 * most):
        whole = _save(alone, "PNG")
        if len(whole) <= most:
            return "image/png", whole
    kind = "WEBP" if features.check("webp") else "JPEG"
    encoded = _save(shrink(alone, side), kind)
    while len(encoded) > most and side > SMALLEST:
        side = max(SMALLEST, side * 3 // 4)
        encoded = _save(shrink(alone, side), kind)
    return f"image/{kind.lower()}", encoded


def _save(picture: Image.Image, kind: str) -> bytes:
    found = BytesIO()
    # of WebP the quickest method, which takes a quarter of the time and a tenth more bytes
    options = {"PNG": {}, "WEBP": {"quality": QUALITY, "method": 0}, "JPEG": {"quality": QUALITY}}
    picture.save(found, format=kind, **options[kind])
    return found.getvalue()


def shrink(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side at most ``side`` pixels."""
    if max(picture.size) <= side:
        return picture
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def encode_video_anew(content: bytes, side: int = MOST_PIXELS) -> bytes:
    """The MP4 with the frames of an MP4, shrunk to ``side``, and nothing else of it.

    Refused: it is none, too long, or there is no PyAV.
    """
    try:
        av = import_pyav()
    except UserError as error:
        raise Refused(f"is a video, and {str(error).partition(' ')[2]}") from error
    file = BytesIO(content)
    try:
        is_mp4 = check_index(file, len(content))
        with open_container(file, is_mp4, ("mov",)) as container, tempfile.TemporaryDirectory() as folder:
            stream = container.streams.video[0]
            if stream.codec_context.name != "h264":
                raise Refused("is not H.264, as a run's videos are")
            if stream.width * stream.height > MOST_PIXELS:
                raise Refused(f"has more than {MOST_PIXELS // 10**6} megapixels")
            rate = min(max(float(stream.average_rate or 0), FRAME_RATES[0]), FRAME_RATES[1])
            small = (shrink(frame, side) for frame in _frames(container))
            encode_video(small, Path(folder) / "anew.mp4", rate, LOSS if max(stream.width, stream.height) > side else 18)
            return (Path(folder) / "anew.mp4").read_bytes()
    except (av.FFmpegError, OSError, ValueError, LookupError, StopIteration) as error:
        raise Refused("is no MP4 that can be read") from error


def _frames(container: Any) -> Iterator[Image.Image]:
    """Refused: they are too many, or too large."""
    left = MOST_PIXELS_OF_A_VIDEO
    for frame in container.decode(video=0):
        left -= frame.width * frame.height
        if left < 0:
            raise Refused(f"has more than {MOST_PIXELS_OF_A_VIDEO // 10**6} megapixels over all frames")
        yield frame.to_image()
