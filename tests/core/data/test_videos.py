"""A video comes upright and at the speed that the model draws at, or is refused in one line."""

from __future__ import annotations

import struct
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowfactory.data.videos import check_video, read_video
from flowfactory.errors import UserError

av = pytest.importorskip("av")


def write(path: Path, times: Sequence[int], base: Fraction, **options: Any) -> Path:
    """A clip whose i-th frame, shown at ``times[i] * base`` seconds, has the grey level 5 i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(options.get("codec", "libx264"), rate=options.get("rate", 1 / base))
        stream.width, stream.height, stream.pix_fmt = 32, 32, options.get("pix_fmt", "yuv420p")
        stream.options = {"qp": "0"} if "pix_fmt" not in options else {}
        stream.codec_context.time_base = base
        stream.codec_context.color_trc = options.get("color_trc", 2)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 5 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, base
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def numbers(pictures: Sequence[Image.Image]) -> list[int]:
    """Which frames of :func:`write` they are."""
    return [round(float(np.asarray(picture).mean()) / 5) for picture in pictures]


@pytest.mark.parametrize(
    ("rate", "frames", "expected"),
    [
        # at 60 a second, frame k of 16 a second is shown at 3.75 k of its frames
        (60, 40, [0, 4, 8, 11, 15, 19, 23, 26, 30, 34, 38, 39]),
        (30, 30, [0, 2, 4, 6, 8, 9, 11, 13, 15, 17, 19, 21, 23, 24, 26, 28, 29]),  # a second, at both of whose ends is a frame
        (24, 13, [0, 2, 3, 5, 6, 8, 9, 11, 12]),
        (16, 9, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (8, 5, [0, 1, 1, 2, 2, 3, 3, 4, 4]),
    ],
)
def test_a_video_is_read_at_the_rate_that_is_wanted(rate: int, frames: int, expected: list[int], tmp_path: Path) -> None:
    path = write(tmp_path / "c.mp4", range(frames), Fraction(1, rate))
    assert numbers(read_video(path, len(expected), 16.0)) == expected
    assert numbers(read_video(path, frames)) == list(range(frames))  # frame by frame
    with pytest.raises(UserError) as refused:
        read_video(path, len(expected) + 1, 16.0)
    assert str(refused.value) == (
        f"video {path}: it has {len(expected)} frames at 16 a second, and {len(expected) + 1} are needed; set 'frames' lower"
    )


def test_times_that_the_file_rounds_change_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "c.mkv", range(9), Fraction(1, 16))  # Matroska's are whole milliseconds
    assert numbers(read_video(path, 9, 16)) == list(range(9))
    with pytest.raises(UserError, match="it has 9 frames at 16 a second, and 10 are needed"):
        read_video(path, 10, 16)


def test_a_rate_that_varies_is_followed(tmp_path: Path) -> None:
    path = write(tmp_path / "c.mp4", [0, 100, 130, 500, 900, 1000], Fraction(1, 1000), rate=10)
    assert numbers(read_video(path, 9, 8)) == [0, 2, 2, 3, 3, 3, 4, 4, 5]  # at 0, 125, 250, 375 … ms


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "c.mkv", [5000, 5125, 5250], Fraction(1, 1000), rate=8)
    assert numbers(read_video(path, 3, 8)) == [0, 1, 2]


def turned(path: Path, matrix: Sequence[int]) -> Path:
    """A clip of 32 x 24, red at the top left and black elsewhere, with a display matrix as phones write it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        pixels = np.zeros((24, 32, 3), np.uint8)
        pixels[:12, :16] = (255, 0, 0)
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")), *stream.encode()]:
            container.mux(packet)
    content = path.read_bytes()
    place = content.index(b"tkhd") + 44  # behind version, times, number, duration, layer, group and volume
    whole = [number << (30 if i % 3 == 2 else 16) for i, number in enumerate(matrix)]
    path.write_bytes(content[:place] + struct.pack(">9i", *whole) + content[place + 36 :])
    return path


@pytest.mark.parametrize(
    ("matrix", "size", "corner"),
    [
        ([1, 0, 0, 0, 1, 0, 0, 0, 1], (32, 24), "top left"),
        ([0, 1, 0, -1, 0, 0, 24, 0, 1], (24, 32), "top right"),  # (x, y) is shown at (24 - y, x)
        ([-1, 0, 0, 0, -1, 0, 32, 24, 1], (32, 24), "bottom right"),
        ([0, -1, 0, 1, 0, 0, 0, 32, 1], (24, 32), "bottom left"),
        ([-1, 0, 0, 0, 1, 0, 32, 0, 1], (32, 24), "top right"),  # mirrored: (x, y) is shown at (32 - x, y)
        ([1, 0, 0, 0, -1, 0, 0, 24, 1], (32, 24), "bottom left"),
        ([0, 1, 0, 1, 0, 0, 0, 0, 1], (24, 32), "top left"),  # (x, y) is shown at (y, x), so that x and y change places
        ([0, -1, 0, -1, 0, 0, 24, 32, 1], (24, 32), "bottom right"),
    ],
)
def test_a_phone_that_was_turned_is_believed(matrix: list[int], size: tuple[int, int], corner: str, tmp_path: Path) -> None:
    (picture,) = read_video(turned(tmp_path / "c.mp4", matrix), 1)
    assert picture.size == size
    width, height = size
    corners = {
        "top left": (4, 4),
        "top right": (width - 4, 4),
        "bottom left": (4, height - 4),
        "bottom right": (width - 4, height - 4),
    }
    assert [name for name, place in corners.items() if picture.getpixel(place)[0] > 128] == [corner]


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused_before_and_while_it_is_read(transfer: int, name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "c.mkv", range(3), Fraction(1, 16), pix_fmt="yuv420p10le", color_trc=transfer)
    for read in (check_video, lambda path: read_video(path, 1)):
        with pytest.raises(UserError, match=r"c\.mkv: cannot be read: its colours are HDR; convert it to SDR$"):
            read(path)


def test_ten_bits_alone_are_no_hdr(tmp_path: Path) -> None:
    path = write(tmp_path / "c.mkv", range(9), Fraction(1, 16), pix_fmt="yuv420p10le")
    assert numbers(read_video(path, 9, 16)) == list(range(9))


def test_transparent_pixels_of_a_video_are_seen_on_white(tmp_path: Path) -> None:
    frames = [Image.new("RGBA", (16, 16), (200, 0, number, 0)) for number in range(4)]
    for frame in frames:
        frame.paste((200, 0, 0, 255), (0, 0, 8, 16))
    frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    for picture in read_video(tmp_path / "c.gif", 2, 8):
        assert picture.getpixel((2, 8)) == pytest.approx((200, 0, 0), abs=3)
        assert picture.getpixel((13, 8)) == (255, 255, 255)


def test_a_stream_without_times_is_read_frame_by_frame_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "c.h264", range(5), Fraction(1, 16))
    assert numbers(read_video(path, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"it does not say when its frames are shown; set prompts\.video_fps to keep$"):
        read_video(path, 5, 16)


def test_what_is_no_whole_video_is_one_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mp4", range(9), Fraction(1, 16)).read_bytes()
    with wave.open(str(tmp_path / "sound.wav"), "w") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16_000))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "holes.mp4").write_bytes(
        b"".join(whole[i : i + 64] if i < 64 else b"\0" * 64 for i in range(0, len(whole), 64))
    )
    for name in ("sound.wav", "empty.mp4", "half.mp4", "text.mp4", "holes.mp4", "none.mp4"):
        with pytest.raises(UserError) as refused:
            read_video(tmp_path / name, 5, 16)
        assert str(refused.value).startswith(f"video {tmp_path / name}: cannot be read: "), refused.value
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"there are no pictures in it; give a video$"):
        check_video(tmp_path / "sound.wav")
    with pytest.raises(UserError, match=r"; it may be damaged: save it anew, as MP4$"):
        check_video(tmp_path / "text.mp4")


def test_what_a_camcorder_recorded_is_read(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "c.dv"), "w") as container:
        stream = container.add_stream("dvvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 720, 576, "yuv420p"
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((576, 720, 3), 50 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())
    check_video(tmp_path / "c.dv", 4, 25)
    shown = read_video(tmp_path / "c.dv", 4, 25)
    assert [frame.getpixel((360, 288))[0] for frame in shown] == pytest.approx([0, 50, 100, 150], abs=3)


@pytest.mark.parametrize("name", ["c.mp4", "c.mkv", "c.avi", "c.webm", "c.ts"])
@pytest.mark.parametrize(("frames", "rate"), [(1, 16), (17, 24), (12, 60), (3, 5)])
def test_what_is_too_short_is_known_before_it_is_decoded(name: str, frames: int, rate: int, tmp_path: Path) -> None:
    path = write(tmp_path / name, range(frames), Fraction(1, rate), codec="libvpx-vp9" if name == "c.webm" else "libx264")
    most = frames * 16 // rate  # about as many as it has at 16 a second
    for wanted, at in ((frames, None), (frames + 1, None), *((count, 16.0) for count in range(max(1, most - 1), most + 4))):
        found = []
        for read in (read_video, check_video):
            try:
                read(path, wanted, at)
                found.append("")
            except UserError as error:
                found.append(str(error))
        assert found[0] == found[1], (wanted, at)


def test_of_a_long_video_what_is_drawn_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "c.mkv", [0, 100, 200, 300, 400, 10_000, 20_000, 30_000], Fraction(1, 1000), rate=10)
    check_video(path, 5, 10)
    check_video(path, 301, 10)
    with pytest.raises(UserError, match="it has 301 frames at 10 a second, and 302 are needed"):
        check_video(path, 302, 10)


def test_a_video_that_is_cut_is_known_before_it_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "c.mkv", range(40), Fraction(1, 16))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"it has \d+ frames at 16 a second, and 40 are needed"):
        check_video(path, 40, 16)
    with pytest.raises(UserError, match=r"it does not say when its frames are shown; set prompts\.video_fps to keep$"):
        check_video(write(tmp_path / "c.h264", range(5), Fraction(1, 16)), 5, 16)
    check_video(tmp_path / "c.h264", 5)
    with pytest.raises(UserError, match=r"it has 1 frame, and 2 are needed"):
        check_video(write(tmp_path / "one.mp4", range(1), Fraction(1, 16)), 2)


def test_transparency_that_would_be_lost_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "c.webm"), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=16)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuva420p"
        frame = av.VideoFrame.from_ndarray(np.full((16, 16, 4), (200, 0, 0, 0), np.uint8), format="rgba")
        for packet in [*stream.encode(frame.reformat(format="yuva420p")), *stream.encode()]:
            container.mux(packet)
    for read in (check_video, lambda path: read_video(path, 1)):
        with pytest.raises(UserError, match=r"its transparency lies in a stream of its own; lay it on a colour$"):
            read(tmp_path / "c.webm")
