"""Videos that prompts bring: read as 8-bit RGB, upright, at the speed that a model draws at, whoever made them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from flowfactory.data.file_kinds import BoundedFile, Kind, name_kind
from flowfactory.data.matroska_frames import MatroskaFrames, begins_as_matroska
from flowfactory.data.media import import_pyav
from flowfactory.data.pictures import lay_on_white
from flowfactory.data.video_index import check_index
from flowfactory.errors import UserError
from flowfactory.untrusted_files import Refused

FORMATS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "ogg", "flv", "asf", "gif", "apng"),
    *("dv", "yuv4mpegpipe", "ivf", "h264", "hevc", "m4v", "mpegvideo"),
)
"""What FFmpeg opens, in its words, where MP4 is mov and WebM matroska: files that lead to no other file."""
CODECS = (
    "h264,hevc,vvc,libdav1d,libaom-av1,libgav1,av1,vp8,vp9,libvpx,libvpx-vp9,mpeg1video,mpeg2video,mpegvideo,mpeg4,"
    "msmpeg4,msmpeg4v1,msmpeg4v2,h261,h263,h263i,h263p,flv,vp3,theora,vp6,vp6a,vp6f,wmv1,wmv2,wmv3,vc1,cinepak,svq1,"
    "svq3,indeo3,indeo5,mjpeg,mjpegb,dvvideo,fraps,prores,dnxhd,cfhd,jpeg2000,qtrle,rpza,msvideo1,msrle,hap,ffv1,"
    "huffyuv,ffvhuff,utvideo,magicyuv,lagarith,rawvideo,v210,v308,v408,v410,r210,gif,apng,png,bmp,tiff,webp,libwebp"
)
"""The decoders that FFmpeg starts for pictures; the others are for files of old games and cameras."""
SOUND_CODECS = (
    "aac,aac_fixed,mp3,mp3float,mp2,mp2float,mp1,mp1float,ac3,eac3,dca,truehd,opus,libopus,vorbis,libvorbis,flac,"
    "alac,amrnb,amrwb,libopencore_amrnb,libopencore_amrwb,wmav1,wmav2,wmapro,nellymoser,speex,libspeex,adpcm_ms,"
    "adpcm_ima_wav,adpcm_ima_qt,adpcm_swf,pcm_u8,pcm_s8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,"
    "pcm_f32le,pcm_f32be,pcm_f64le,pcm_alaw,pcm_mulaw,pcm_bluray,pcm_dvd"
)
"""Sound is never decoded, but its decoders tell FFmpeg what it is, so that it need not read on to find out."""
PIXELS = 2**26
"""The most of a frame, 8192 x 8192: 8K in any shape."""
LONGEST_SIDE = 2**16
BEFORE_FRAMES = 2**27  # bytes, for a frame of 8K as it is
FASTEST = 1000
"""Frames a second: so many are looked at, at most, to find those of the speed that a model draws at."""
REMEDY = "save it anew, as MP4"


def read_video(path: Path, frames: int, frame_rate: float | None = None) -> list[Image.Image]:
    """``frames`` frames in RGB, turned as the camera was held: those nearest to ``frame_rate`` a second, or the first.

    UserError: it cannot be read, is too short, or does not say when its frames are shown.
    """
    with _open_file(path) as container:
        decoded = _bound(container.decode(video=0), frames, frame_rate)
        if frame_rate is not None:
            decoded = _nearest_frames(decoded, frames, Fraction(frame_rate).limit_denominator(1001))
        found = [_turn_upright(frame) for frame in islice(decoded, frames)]
    if not found:
        raise UserError(f"video {path}: cannot be read: no frame of it can be decoded; it may be cut short")
    _check_count(path, len(found), frames, frame_rate)
    return found


def check_video(path: Path, frames: int = 0, frame_rate: float | None = None) -> None:
    """UserError: it cannot be opened, or the file says already that :func:`read_video` will not do. Decodes nothing."""
    with _open_file(path) as container:
        packets = _shown_packets(container, frames, frame_rate)
        if frame_rate is not None:
            packets = _nearest_frames(packets, frames, Fraction(frame_rate).limit_denominator(1001))
        _check_count(path, sum(1 for _ in islice(packets, frames)), frames, frame_rate)


def _bound(shown: Iterable[Any], frames: int, frame_rate: float | None) -> Iterator[Any]:
    """``shown``. ValueError: far more than ``frames`` at ``frame_rate`` need be looked at, at any speed that is usual."""
    most = math.inf if frame_rate is None else FASTEST * (frames / frame_rate + 1)
    for number, one in enumerate(shown):
        if number > most:
            raise ValueError(f"it has more than {FASTEST} frames a second; save it at a usual speed")
        yield one


class _Shown(NamedTuple):
    """When what a packet holds is shown, told as a frame tells it."""

    pts: int | None
    time_base: Fraction | None


def _shown_packets(container: Any, frames: int, frame_rate: float | None) -> Iterable[_Shown]:
    """What of the video is shown, in order, or of a long one its beginning, in which ``frames`` are."""
    shown: list[_Shown] = []
    first: float = math.inf
    for packet in _bound(container.demux(video=0), frames, frame_rate) if frames else ():
        if not packet.size or packet.is_discard:
            continue
        time = packet.dts if packet.pts is None else packet.pts
        shown.append(_Shown(time, packet.time_base))
        first = first if time is None else min(first, time)
        # what follows is shown after its dts, and counted from the first that is shown
        known = packet.dts is not None and packet.time_base
        if (known and (packet.dts - first) * packet.time_base * frame_rate >= frames) if frame_rate else len(shown) == frames:
            break
    return sorted(shown, key=lambda one: -math.inf if one.pts is None else one.pts)


def _check_count(path: Path, found: int, frames: int, frame_rate: float | None) -> None:
    if found < frames:
        at = "" if frame_rate is None else f" at {frame_rate:g} a second"
        told = "1 frame" if found == 1 else f"{found} frames"
        raise UserError(f"video {path}: it has {told}{at}, and {frames} are needed; set 'frames' lower")


@contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    av = import_pyav()
    try:
        with closing(BoundedFile(path, BEFORE_FRAMES)) as file, _open_named(file, av) as container:
            yield container
    except Refused as refused:
        raise UserError(f"video {path}: {refused}") from refused
    except (OSError, LookupError, ArithmeticError, MemoryError, av.FFmpegError) as error:
        problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"video {path}: cannot be read: {problem}; it may be damaged: {REMEDY}") from error
    except ValueError as error:
        raise UserError(f"video {path}: cannot be read: {error}") from error


def _open_named(file: BoundedFile, av: Any) -> Any:
    """As :func:`open_container`. Refused: more comes before its frames than is read, or it is no video, and what it is."""
    kind = name_kind(file.head())
    if kind and kind.sort != "video" and kind.name not in ("GIF", "PNG"):  # which may be an APNG
        raise Refused(f"cannot be read: {_refusal(kind)}")
    if kind and kind.name == "YUV4MPEG2":
        _check_raw(file.head())
    try:
        container = open_container(file, check_index(file.whole, file.size))
    except av.FFmpegError as error:
        file.check()
        if kind and kind.sort == "picture":
            raise Refused(f"cannot be read: {_refusal(kind)}") from error
        if isinstance(error, av.ArgumentError):  # whose format is not one of FORMATS
            raise Refused(f"cannot be read: no kind of video that is known; {REMEDY}") from error
        raise
    file.lift()
    return container


def _check_raw(head: bytes) -> None:
    """Refused: the first line of a YUV4MPEG2 tells of frames that are too large, of which FFmpeg says that a device is busy."""
    sides = [int(side) for side in re.findall(rb" [WH](\d{1,18})", head.partition(b"\n")[0])]
    if max([0, *sides]) > LONGEST_SIDE or math.prod(sides) > PIXELS:
        raise Refused(f"its frames are {' x '.join(map(str, sides))}, which is too large; make them smaller")


def _refusal(kind: Kind) -> str:
    if kind.sort == "sound":
        return f"this is {kind.name}, and there are no pictures in it; give a video"
    if kind.sort == "picture":
        return f"this is {kind.name}, which is a picture; give a video"
    return kind.refusal(REMEDY)


def open_container(file: Any, is_mp4: bool, formats: tuple[str, ...] = FORMATS) -> Any:
    """PyAV's container of the video in ``file``, which is one of ``formats`` by its content; ``is_mp4``: check_index's answer.

    It leads FFmpeg to no other file. Refused: it is larger than videos are, or tells too much. ValueError: its colours would
    not come out.
    av.ArgumentError: it is of another format.
    What else FFmpeg stumbles over is raised as PyAV has it.
    """
    is_matroska = not is_mp4 and begins_as_matroska(file)
    kind = "mov" if is_mp4 else "matroska" if is_matroska else None
    allowed = [name for name in formats if name == kind or (kind is None and name not in ("mov", "matroska"))] or ["none"]
    decoders = {"codec_whitelist": f"{CODECS},{SOUND_CODECS}", "max_pixels": str(PIXELS)}
    # 'none' is the name of no protocol: nothing but the open file is read
    options = {"format_whitelist": ",".join(allowed), "protocol_whitelist": "none", "enable_drefs": "0", **decoders}
    source = _Quiet(MatroskaFrames(file) if is_matroska else file)
    container = import_pyav().open(source, options=options, metadata_errors="replace")
    try:
        _check_stream(container)
    except BaseException:
        container.close()
        raise
    container.streams.video[0].codec_context.options = decoders
    return container


TOO_LARGE = f"more than {PIXELS / 1e6:.0f} megapixels; make them smaller"


class _Quiet:
    """A file that never raises, as PyAV prints the second thing that is raised before FFmpeg returns: it ends or stays."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seekable = lambda: hasattr(file, "seek")

    def tell(self) -> int:
        place: int = self._file.tell()
        return place

    def read(self, size: int) -> bytes:
        try:
            content: bytes = self._file.read(size)
        except OSError:
            return b""
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            place: int = self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):  # before the beginning, or beyond what is counted
            return -1
        return place


def _check_stream(container: Any) -> None:
    if not container.streams.video:
        raise ValueError("there are no pictures in it; give a video")
    stream = container.streams.video[0]
    decoder = stream.codec_context
    if decoder is None or decoder.codec.name not in CODECS.split(","):
        raise Refused(f"its codec is {decoder.codec.name if decoder else 'not known'}, which is not read; {REMEDY}")
    if not decoder.width and container.format.name.startswith(("avi", "matroska", "mov")):  # FFmpeg drops what is too large
        raise Refused(f"its frames have no size that is known, or {TOO_LARGE}")
    if decoder.width * decoder.height > PIXELS:
        raise Refused(f"its frames have {TOO_LARGE}")
    if decoder.color_trc in HDR:
        raise ValueError("its colours are HDR; convert it to SDR")
    if stream.metadata.get("alpha_mode") == "1":  # its decoder would leave it out
        raise ValueError("its transparency lies in a stream of its own; lay it on a colour")


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
    picture = lay_on_white(Image.fromarray(frame.to_ndarray(format="rgba"))) if clear else frame.to_image()
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
