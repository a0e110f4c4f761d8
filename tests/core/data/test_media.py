from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flowfactory.data import media
from flowfactory.data.pictures import read_picture
from flowfactory.data.videos import read_video
from flowfactory.errors import UserError


def clip(frames: int, height: int = 16, width: int = 24) -> torch.Tensor:
    """Frames that grow brighter, with a dark left half."""
    levels = torch.linspace(0.2, 0.9, frames).reshape(frames, 1, 1, 1).expand(frames, 3, height, width).clone()
    levels[..., : width // 2] = 0
    return levels


def test_a_video_is_written_and_read_frame_by_frame(tmp_path: Path) -> None:
    written = media.write_media(clip(7), tmp_path / "c", frame_rate=16)
    assert written == tmp_path / "c.mp4"
    read = read_video(written, 7)
    assert [frame.size for frame in read] == [(24, 16)] * 7
    for i, frame in enumerate(read):
        assert frame.getpixel((20, 8))[0] == pytest.approx(255 * (0.2 + 0.7 * i / 6), abs=10)
        assert frame.getpixel((3, 8))[0] < 12
    assert [p.name for p in tmp_path.iterdir()] == ["c.mp4"]


def test_a_clip_plays_in_a_browser_at_its_frame_rate(tmp_path: Path) -> None:
    import av

    with av.open(str(media.write_media(clip(9), tmp_path / "c", frame_rate=24))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == pytest.approx(24)
        assert stream.frames == 9


def test_odd_sides_lose_no_pixel(tmp_path: Path) -> None:
    (frame, *_) = read_video(media.write_media(clip(2, 15, 23), tmp_path / "c"), 2)
    assert frame.size == (24, 16)


def test_one_frame_is_a_picture(tmp_path: Path) -> None:
    written = media.write_media(clip(1), tmp_path / "c")
    assert written.suffix == ".png"
    with Image.open(written) as picture:
        assert picture.size == (24, 16)


def test_the_first_frames_are_read_and_too_few_are_refused(tmp_path: Path) -> None:
    written = media.write_media(clip(5), tmp_path / "c")
    assert len(read_video(written, 3)) == 3
    with pytest.raises(UserError, match=r"^video .*c\.mp4: it has 5 frames, and 9 are needed; set 'frames' lower$"):
        read_video(written, 9)


@pytest.mark.parametrize(("name", "read"), [("x.png", read_picture), ("x.mp4", lambda path: read_video(path, 1))])
def test_a_file_that_is_none_is_one_line(name: str, read: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=rf"{name}: cannot be read") as refused:
        read(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_a_camera_that_was_held_upright_is_believed(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 2), "red")
    picture.getexif()[0x0112] = 6  # turned by 90 degrees
    facts = picture.getexif()
    facts[0x0112] = 6
    picture.save(tmp_path / "p.jpg", exif=facts)
    assert read_picture(tmp_path / "p.jpg").size == (2, 4)


def test_a_digest_follows_the_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"same")
    two.write_bytes(b"same")
    assert media.file_digest(one) == media.file_digest(two)
    two.write_bytes(b"diff!")
    assert media.file_digest(one) != media.file_digest(two)
    with pytest.raises(UserError, match="cannot be read"):
        media.file_digest(tmp_path / "3")


def test_without_pyav_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **options: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"videos need PyAV: pip install 'flowfactory\[video\]'"):
        media.write_media(clip(2), tmp_path / "c")
