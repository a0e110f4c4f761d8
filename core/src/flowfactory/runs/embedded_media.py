"""Samples of a run directory as parts of a page: decoded, and encoded anew, so that nothing of the file itself gets there."""

from __future__ import annotations

import tempfile
from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

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


def data_url(path: Path, within: Path) -> str:
    """The PNG, or the MP4 where its name ends so, as a URL that holds it. Refused: it is none, too large, or elsewhere."""
    try:
        content = read_bytes(path, LARGEST_FILE, within)
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from error
    kind, encode = ("video/mp4", encode_video_anew) if path.suffix == ".mp4" else ("image/png", encode_picture_anew)
    return f"data:{kind};base64,{b64encode(encode(content)).decode()}"


def encode_picture_anew(content: bytes) -> bytes:
    """The PNG with the pixels of a PNG and nothing else of it. Refused: it is none, or too large."""
    try:
        picture = open_picture(BytesIO(content), ("PNG",))
        if picture.width * picture.height > MOST_PIXELS:
            raise Refused(f"has more than {MOST_PIXELS // 10**6} megapixels")
        pixels = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
        alone = Image.frombytes(pixels.mode, pixels.size, pixels.tobytes())
    except Refused:
        raise
    except Exception as error:  # Pillow raises whatever a decoder stumbles over
        raise Refused("is no PNG that can be read") from error
    found = BytesIO()
    alone.save(found, format="PNG")
    return found.getvalue()


def encode_video_anew(content: bytes) -> bytes:
    """The MP4 with the frames of an MP4 and nothing else of it. Refused: it is none, too long, or there is no PyAV."""
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
            encode_video(_frames(container), Path(folder) / "anew.mp4", rate)
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
