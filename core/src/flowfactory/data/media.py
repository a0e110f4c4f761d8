"""Pictures and videos on disk: read as conditions, written as samples."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from flowfactory.atomic_files import replacing
from flowfactory.errors import UserError

FRAME_RATE = 8.0  # of clips whose model does not say


def read_picture(path: Path) -> Image.Image:
    """The picture in RGB with 8 bits, turned as its camera says, white where it is transparent; of an animation the first.

    UserError: it cannot be read, or which of its levels is white is not known.
    """
    with _open_picture(path) as picture:
        kind = picture.format
        return _lay_on_white(_reduce_to_8_bits(ImageOps.exif_transpose(picture), kind))


def check_picture(path: Path, whole: bool = True) -> tuple[int, int]:
    """Width and height in pixels, before it is turned.

    UserError: :func:`read_picture` refuses it, as far as can be told in a fraction of its time, or where it is not ``whole``
    from its header.
    """
    with _open_picture(path) as picture:
        size = picture.size
        if whole and picture.format == "PNG":
            picture.verify()  # its checksums
        elif whole:
            picture.draft(None, (1, 1))  # of a JPEG an eighth
            _reduce_to_8_bits(picture, picture.format).load()
        return size


@contextmanager
def _open_picture(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of half of what is too large
            picture = Image.open(path)
        with picture:
            yield picture
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise UserError(f"picture {path}: it has more than {most:.0f} megapixels; make it smaller") from error
    except UnidentifiedImageError as error:
        raise UserError(f"picture {path}: cannot be read: no kind of picture that is known; save it as PNG or JPEG") from error
    except Exception as error:  # Pillow raises whatever a decoder stumbles over
        problem = str(error).partition("\n")[0] or type(error).__name__
        remedy = "without its text" if "MAX_TEXT" in problem else "with 8 bits, as PNG or JPEG"
        raise UserError(f"picture {path}: cannot be read: {problem}; save it {remedy}") from error


def _reduce_to_8_bits(picture: Image.Image, kind: str | None) -> Image.Image:
    """The picture, with 8 bits if it was grey with more. ValueError: which level is white is not known."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind in ("PNG", "PPM")):  # older Pillows say I of both
        levels = np.asarray(picture).astype(np.float32) / 65535
        levels[np.asarray(picture) == picture.info.get("transparency")] = 1
    elif picture.mode == "F":
        levels = np.asarray(picture)
        if not ((levels >= 0) & (levels <= 1)).all():
            raise ValueError(f"its levels are numbers from {levels.min():g} to {levels.max():g}, and white is 1")
    elif picture.mode == "I":
        raise ValueError("its levels have 32 bits, and which of them is white is not known")
    else:
        return picture
    return Image.fromarray((levels * 255).round().astype(np.uint8))


def _lay_on_white(picture: Image.Image) -> Image.Image:
    if picture.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in picture.info:
        return picture.convert("RGB")
    picture = picture.convert("LA") if picture.mode == "La" else picture
    seen = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def read_video(path: Path, frames: int, frame_rate: float | None = None) -> list[Image.Image]:
    """``frames`` frames in RGB, turned as the camera was held: those nearest to ``frame_rate`` a second, or the first.

    UserError: it cannot be read, is too short, or does not say when its frames are shown.
    """
    with _open_video(path) as container:
        decoded = container.decode(video=0)
        if frame_rate is not None:
            decoded = _nearest_frames(decoded, frames, Fraction(frame_rate).limit_denominator(1001))
        found = [_turn_upright(frame) for frame in islice(decoded, frames)]
    if not found:
        raise UserError(f"video {path}: cannot be read: no frame of it can be decoded; it may be cut short")
    _check_count(path, len(found), frames, frame_rate)
    return found


def check_video(path: Path, frames: int = 0, frame_rate: float | None = None) -> None:
    """UserError: it cannot be opened, or the file says already that :func:`read_video` will not do. Decodes nothing."""
    with _open_video(path) as container:
        packets = _shown_packets(container, frames, frame_rate)
        if frame_rate is not None:
            packets = _nearest_frames(packets, frames, Fraction(frame_rate).limit_denominator(1001))
        _check_count(path, sum(1 for _ in islice(packets, frames)), frames, frame_rate)


class _Shown(NamedTuple):
    """When what a packet holds is shown, told as a frame tells it."""

    pts: int | None
    time_base: Fraction | None


def _shown_packets(container: Any, frames: int, frame_rate: float | None) -> Iterable[_Shown]:
    """What of the video is shown, in order, or of a long one its beginning, in which ``frames`` are."""
    shown: list[_Shown] = []
    first: float = math.inf
    for packet in container.demux(video=0) if frames else ():
        if not packet.size or packet.is_discard:
            continue
        time = packet.dts if packet.pts is None else packet.pts
        shown.append(_Shown(time, packet.time_base))
        first = first if time is None else min(first, time)
        # what follows is shown after its dts, and counted from the first that is shown
        if packet.dts is not None and frame_rate and (packet.dts - first) * packet.time_base * frame_rate >= frames:
            break
    return sorted(shown, key=lambda one: -math.inf if one.pts is None else one.pts)


def _check_count(path: Path, found: int, frames: int, frame_rate: float | None) -> None:
    if found < frames:
        at = "" if frame_rate is None else f" at {frame_rate:g} a second"
        told = "1 frame" if found == 1 else f"{found} frames"
        raise UserError(f"video {path}: it has {told}{at}, and {frames} are needed; set 'frames' lower")


@contextmanager
def _open_video(path: Path) -> Iterator[Any]:
    av = import_pyav()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("there are no pictures in it; give a video")
            if container.streams.video[0].codec_context.color_trc in HDR:
                raise ValueError("its colours are HDR; convert it to SDR")
            if container.streams.video[0].metadata.get("alpha_mode") == "1":  # its decoder would leave it out
                raise ValueError("its transparency lies in a stream of its own; lay it on a colour")
            yield container
    except (OSError, LookupError, av.FFmpegError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UserError(f"video {path}: cannot be read: {problem}; it may be damaged: save it anew, as MP4") from error
    except ValueError as error:
        raise UserError(f"video {path}: cannot be read: {error}") from error


HDR = (16, 18)
"""The transfer functions of HDR, PQ and HLG, as ITU-T H.273 counts them: as 8 bits they come out pale."""


def _nearest_frames(decoded: Iterable[Any], count: int, rate: Fraction) -> Iterator[Any]:
    """Of ``decoded``, the frames nearest to the times 0, 1 / rate, 2 / rate … after the first, of two as near the later.

    ``count`` of them, or as many as there are: the last stands for what begins less than 1 / rate behind it, so that five
    seconds are 81 frames at 16 a second. ValueError: a frame does not say when it is shown.
    """
    wanted, first, before, last = 0, None, None, Fraction(0)
    for frame in decoded:
        if frame.pts is None or not frame.time_base:
            raise ValueError("it does not say when its frames are shown; set prompts.video_fps to keep")
        shown = frame.pts * Fraction(frame.time_base)
        first = shown if first is None else first
        now = shown - first
        while wanted < count and (time := wanted / rate) <= now:
            yield frame if before is None or now - time <= time - last else before
            wanted += 1
        if wanted == count:
            return
        before, last = frame, now
    while before is not None and wanted < count and wanted / rate - last < Fraction(9, 10) / rate:  # files round their times
        yield before
        wanted += 1


def _turn_upright(frame: Any) -> Image.Image:
    clear = any(part.is_alpha for part in frame.format.components)  # such as a GIF's
    picture = _lay_on_white(Image.fromarray(frame.to_ndarray(format="rgba"))) if clear else frame.to_image()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()  # rows; (x, y) is shown at (a x + c y, b x + d y)
    a, b, c, d = (a, 0, 0, d) if abs(a) >= abs(b) else (0, b, c, 0)
    turn = _TURNS.get((_sign(a), _sign(b), _sign(c), _sign(d)))
    return picture if turn is None else picture.transpose(turn)


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


_TURNS = {
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""By the signs of a display matrix, in Pillow's words, which turn counterclockwise."""


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


def encode_video(pictures: Iterable[Image.Image], path: Path, frame_rate: float) -> None:
    """Write ``pictures``, one or more of one size, to ``path`` as an MP4 that browsers play."""
    av = import_pyav()
    following = iter(pictures)
    first = next(following)
    width, height = first.size
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(frame_rate).limit_denominator(1001))
        # browsers play 4:2:0 alone, which wants even sides
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.options = {"crf": "18"}
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


@lru_cache(maxsize=100_000)
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
