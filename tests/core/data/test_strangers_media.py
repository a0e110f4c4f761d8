"""A stranger's picture or video starts no program, reads no other file, and costs little when it is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, features
from tests.shared import hostile_media

from flowfactory.data.pictures import check_picture, read_picture
from flowfactory.data.videos import check_video, read_video
from flowfactory.errors import UserError

MEGABYTES, SECONDS = 200, 120
PICTURE_READERS = (read_picture, check_picture)
VIDEO_READERS = (lambda path: read_video(path, 2), lambda path: read_video(path, 2, 16), check_video)


def refusal(read: Callable[[Path], Any], path: Path) -> str:
    with pytest.raises(UserError) as refused:
        read(path)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert str(path) in sentence
    return sentence.partition(f"{path}: ")[2]


def clip(path: Path, frames: int = 3, base: Fraction = Fraction(1, 16), **options: Any) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=options.get("format"), options=options.get("options", {})) as container:
        container.metadata.update(options.get("metadata", {}))
        stream = container.add_stream(options.get("codec", "mpeg4"), rate=1 / base)
        stream.width, stream.height, stream.pix_fmt = 32, 32, options.get("pix_fmt", "yuv420p")
        stream.codec_context.time_base = base
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number % 256, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_picture_in_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    Image.new("RGB", (8, 8)).save(tmp_path / "p.jpg", format="EPS")
    for read in PICTURE_READERS:
        assert refusal(read, tmp_path / "p.jpg") == "cannot be read: this is EPS; save it as PNG or JPEG"
    assert not started.exists()
    with Image.open(tmp_path / "p.jpg") as picture, pytest.raises(OSError):
        picture.load()  # what the refusal is for
    assert started.exists()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("PDF", "this is PDF; save it as PNG or JPEG"),
        ("ICO", "this is ICO; save it as PNG or JPEG"),
        ("PPM", "this is PNM; save it as PNG or JPEG"),
        ("DDS", "this is DDS; save it as PNG or JPEG"),
        ("JPEG2000", "this is JPEG 2000; save it as PNG or JPEG"),
        ("AVIF", "this is AVIF; save it as PNG or JPEG"),
        ("TGA", "no kind of picture that is known; save it as PNG or JPEG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "this is HEIC; save it as PNG or JPEG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "this is MP4; give a picture"),
        (b'<?xml version="1.0"?>\n<svg width="8"/>', "this is SVG; save it as PNG or JPEG"),
        (b"<!DOCTYPE html><p>Not found", "this is a web page; save it as PNG or JPEG"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "this is a pointer of Git LFS; run git lfs pull"),
    ],
)
def test_a_picture_of_another_kind_is_told_by_its_content(kind: str | bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    if isinstance(kind, bytes):
        path.write_bytes(kind)
    else:
        if not features.check({"JPEG2000": "jpg_2000", "AVIF": "avif"}.get(kind, "pil")):
            pytest.skip("this Pillow writes none")
        Image.new("RGB", (32, 32)).save(path, format=kind)
    for read in PICTURE_READERS:
        assert refusal(read, path) == f"cannot be read: {said}"


def test_pictures_of_phones_are_read(tmp_path: Path) -> None:
    red, black = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (8, 6))
    red.save(tmp_path / "two.jpg", format="MPO", save_all=True, append_images=[black])
    # a video lies behind the end of the picture, whose bytes may look like scans
    (tmp_path / "moving.jpg").write_bytes(hostile_media.jpeg(8000, 6000) + b"\xff\xda\0\3." * 10_000)
    assert read_picture(tmp_path / "two.jpg").getpixel((2, 2)) == pytest.approx((254, 0, 0), abs=2)
    assert check_picture(tmp_path / "two.jpg") == (8, 6)
    assert check_picture(tmp_path / "moving.jpg") == (8000, 6000)  # of 48 megapixels


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_what_a_picture_tells_beside_its_pixels_takes_little_time_and_memory(tmp_path: Path) -> None:
    pytest.importorskip("av")
    for name, make in hostile_media.TOLD.items():
        (tmp_path / name).write_bytes(make())
    run = [sys.executable, "-c", CHILD, *(str(tmp_path / name) for name in hostile_media.TOLD)]
    told = subprocess.run(run, capture_output=True, text=True, timeout=30)
    assert (told.returncode, told.stderr) == (0, "")
    lines = [line.split(" ", 2) for line in told.stdout.splitlines()]
    assert len(lines) == 2 * len(hostile_media.TOLD)
    for name, megabytes, sentence in lines:
        assert int(megabytes) < 60, (name, sentence)
        assert sentence.endswith("; save it anew, as PNG or JPEG"), name


def test_what_cameras_and_editors_tell_is_no_fault(tmp_path: Path) -> None:
    segments = hostile_media.segments
    photoshop = segments(13, b"Photoshop 3.0\0", 20) + segments(1, b"http://ns.adobe.com/xmp/extension/\0", 300)
    told = (
        segments(1, b"Exif\0\0II*\0\x08\0\0\0", 2)
        + photoshop
        + segments(2, b"ICC_PROFILE\0\1\1", 40)
        + segments(2, b"MPF\0", 1)
    )
    (tmp_path / "p.jpg").write_bytes(hostile_media.jpeg_that_tells(told))
    strips = Image.new("L", (4, 60_000), 7)
    strips.save(tmp_path / "p.tif", tiffinfo={278: 1})  # each line for itself
    (tmp_path / "xmp.tif").write_bytes(hostile_media.tiff_of_numbers(1, 1, (700,), 3_000_000))
    for name, size in (("p.jpg", (64, 64)), ("p.tif", (4, 60_000)), ("xmp.tif", (8, 8))):
        assert check_picture(tmp_path / name) == read_picture(tmp_path / name).size == size


def test_odd_tags_are_no_warning_on_the_terminal(tmp_path: Path) -> None:
    content = bytearray(hostile_media.tiff_of_numbers(1, 1, (700,), 1000))
    place = content.index((700).to_bytes(2, "little") + b"\1\0")
    content[place + 4 : place + 8] = (60_000).to_bytes(4, "little")  # more than there are
    (tmp_path / "p.tif").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in PICTURE_READERS:
            read(tmp_path / "p.tif")


LISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile '{other}'\n",
    "list.mpd": '<?xml version="1.0"?>\n<MPD type="static"><BaseURL>{other}</BaseURL></MPD>',
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "list.ffmeta": ";FFMETADATA1\ntitle={other}\n",
    "list.vtt": "WEBVTT\n\n00:00.000 --> 00:01.000\n{other}\n",
    "list.txt": "movie={other}\n",
    "list.nfo": "{other}\n" * 20,
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_other_files_is_no_video(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = clip(tmp_path / "other.ts")
    for suffix in ("", ".mp4"):
        path = tmp_path / f"{name}{suffix}"
        path.write_text(LISTS[name].format(other=other.name))
        for read in VIDEO_READERS:
            assert refusal(read, path).endswith("save it anew, as MP4")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["concat:other.mp4", "http:x.mp4", "subfile,,start,0,end,0,,:c.mp4", "c%03d.mp4", "-"])
def test_a_name_is_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip(tmp_path / "other.mp4", 9)
    clip(tmp_path / name, format="mp4" if name.endswith(("4", "-")) else None, codec="mpeg4")
    monkeypatch.chdir(tmp_path)
    assert len(read_video(Path(name), 3)) == 3
    with pytest.raises(UserError, match="it has 3 frames, and 4 are needed"):
        read_video(Path(name), 4)


def test_frames_of_another_file_are_not_read(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    other, path = clip(tmp_path / "other.mov", 5), tmp_path / "c.mov"
    path.write_bytes(hostile_media.lend_frames(other.read_bytes(), "other.mov"))
    with av.open(str(path), options={"enable_drefs": "1"}) as container:
        assert len([*container.decode(video=0)]) == 5  # what the refusal is for
    for read in VIDEO_READERS[:2]:
        assert refusal(read, path)


@pytest.mark.parametrize(
    ("begin", "said"),
    [
        (hostile_media.png(8, 8), "this is PNG, which is a picture; give a video"),
        (hostile_media.jpeg(8, 8), "this is JPEG, which is a picture; give a video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "this is WAV, and there are no pictures in it; give a video"),
        (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02\x04\0", "this is MXF; save it anew, as MP4"),
        (b"nut/multimedia container\0NM", "this is NUT; save it anew, as MP4"),
    ],
)
def test_a_video_of_another_kind_is_told_by_its_content(begin: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "c.mp4").write_bytes(begin)
    for read in VIDEO_READERS:
        assert refusal(read, tmp_path / "c.mp4") == f"cannot be read: {said}"


def test_a_decoder_that_hardly_anybody_uses_is_not_started(tmp_path: Path) -> None:
    clip(tmp_path / "c.avi", codec="asv1")
    for read in VIDEO_READERS:
        assert refusal(read, tmp_path / "c.avi") == "its codec is asv1, which is not read; save it anew, as MP4"


@pytest.mark.parametrize("name", ["c.avi", "c.mkv", "c.mp4"])
def test_frames_that_are_too_large_are_one_line(name: str, tmp_path: Path) -> None:
    path = clip(tmp_path / name, codec="mjpeg", pix_fmt="yuvj420p")
    content = path.read_bytes()
    small, large = b"\xff\xc0\0\x11\x08\0\x20\0\x20", b"\xff\xc0\0\x11\x08\x23\x28\x23\x28"  # the size in a JPEG
    assert content.count(small) == 3
    path.write_bytes(content.replace(small, large, 2))
    for read in VIDEO_READERS[:2]:
        assert refusal(read, path)
    if name == "c.avi":  # which says it in its header too
        path.write_bytes(content.replace(small, large).replace(b"\x20\0\0\0\x20\0\0\0", b"\x28\x23\0\0\x28\x23\0\0"))
        for read in VIDEO_READERS:
            assert refusal(read, path).endswith(" more than 67 megapixels; make them smaller")


@pytest.mark.parametrize(("width", "height"), [(60_000_000, 1), (9000, 9000), (10**17, 10**17)])
def test_raw_frames_that_are_too_large_are_one_line(width: int, height: int, tmp_path: Path) -> None:
    path = tmp_path / "c.y4m"
    path.write_bytes(b"YUV4MPEG2 W%d H%d F25:1 C444p16\nFRAME\n" % (width, height) + bytes(1000))
    for read in VIDEO_READERS:
        assert refusal(read, path) == f"its frames are {width} x {height}, which is too large; make them smaller"


def test_an_index_that_leads_nowhere_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = clip(tmp_path / "c.mkv")
    whole = path.read_bytes()
    begin = whole.index(b"\x15\x49\xa9\x66")  # Info, behind which everything is
    for place in range(begin, min(len(whole), begin + 600), 7):
        path.write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
        for read in VIDEO_READERS:
            with suppress(UserError):
                read(path)
    assert capfd.readouterr().err == ""


def test_a_title_in_latin_letters_is_no_fault(tmp_path: Path) -> None:
    path = clip(tmp_path / "c.avi", metadata={"title": "Cafe"})
    path.write_bytes(path.read_bytes().replace(b"Cafe", b"Caf\xe9"))
    assert len(read_video(path, 3)) == 3


def test_far_more_frames_than_are_needed_are_not_looked_at(tmp_path: Path) -> None:
    path = clip(tmp_path / "c.mkv", 1300, Fraction(1, 1000))
    check_video(path, 2, 16)
    assert len(read_video(path, 2, 16)) == 2
    path = clip(tmp_path / "fast.mp4", 1300, Fraction(1, 60_000))
    for read in (lambda one: read_video(one, 2, 16), lambda one: check_video(one, 2, 16)):
        assert refusal(read, path) == "cannot be read: it has more than 1000 frames a second; save it at a usual speed"


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device", "nothing"])
def test_what_is_no_file_is_one_line_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    with socket.socket(socket.AF_UNIX) as listening:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "socket":
            listening.bind(str(path))
        for read in (*PICTURE_READERS, *VIDEO_READERS):
            assert refusal(read, path)


CHILD = """
import sys
from pathlib import Path
from flowfactory.data.pictures import check_picture, read_picture
from flowfactory.data.videos import check_video, read_video
from flowfactory.errors import UserError

def peak():
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

import av, PIL.TiffImagePlugin
before = peak()
for path in map(Path, sys.argv[1:]):
    pictures = (check_picture, read_picture)
    videos = (lambda one: check_video(one, 5, 16), lambda one: read_video(one, 5, 16), lambda one: read_video(one, 5))
    for read in videos if path.suffix == ".mp4" else pictures:
        try:
            read(path)
            print(path.name, "was read")
        except UserError as refused:
            print(path.name, peak() - before, str(refused).partition(f"{path}: ")[2])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_what_matroska_tells_beside_frames_takes_little_memory(tmp_path: Path) -> None:
    pytest.importorskip("av")
    paths = [tmp_path / f"{name}.mp4" for name in hostile_media.MATROSKA]
    for path in paths:
        path.write_bytes(hostile_media.MATROSKA[path.stem]())
    run = subprocess.run([sys.executable, "-c", CHILD, *map(str, paths)], capture_output=True, text=True, timeout=SECONDS)
    assert (run.returncode, run.stderr) == (0, "")
    lines = [line.split(" ", 2) for line in run.stdout.splitlines()]
    assert len(lines) == 3 * len(paths)
    for name, megabytes, sentence in lines:
        assert megabytes.isdigit(), (name, megabytes, sentence)
        assert int(megabytes) < 60, (name, sentence)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_bombs_are_refused_for_little_memory(tmp_path: Path) -> None:
    pytest.importorskip("av")
    made = hostile_media.PICTURES | hostile_media.VIDEOS
    for name, make in made.items():
        (tmp_path / name).write_bytes(make())
        assert (tmp_path / name).stat().st_size < 2**21
    run = [sys.executable, "-c", CHILD, *(str(tmp_path / name) for name in made)]
    told = subprocess.run(run, capture_output=True, text=True, timeout=SECONDS)
    assert (told.returncode, told.stderr) == (0, "")
    lines = [line.split(" ", 2) for line in told.stdout.splitlines()]
    assert len(lines) == 2 * len(hostile_media.PICTURES) + 3 * len(hostile_media.VIDEOS)
    for name, megabytes, sentence in lines:
        assert megabytes.isdigit(), (name, megabytes, sentence)
        assert int(megabytes) < MEGABYTES, (name, sentence)
        assert "; " in sentence, name


def test_the_sound_of_a_camera_is_no_bomb(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    seconds = 120  # 5.3 million samples of two bytes, which an index tells of one by one
    with av.open(str(tmp_path / "c.mov"), "w") as container:
        picture, sound = container.add_stream("mpeg4", rate=1), container.add_stream("pcm_s16le", rate=44_100, layout="mono")
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        for number in range(seconds):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            frame.pts = number
            container.mux(picture.encode(frame))
            heard = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), np.int16), format="s16", layout="mono")
            heard.sample_rate, heard.pts = 44_100, number * 44_100
            container.mux(sound.encode(heard))
        container.mux(picture.encode())
    check_video(tmp_path / "c.mov", 5)
    content = (tmp_path / "c.mov").read_bytes()
    assert len(read_video(tmp_path / "c.mov", 5)) == 5
    told = (44_100 * seconds).to_bytes(4, "big")  # so many it tells of
    assert told in content
    (tmp_path / "c.mov").write_bytes(content.replace(told, (44_100 * 7200).to_bytes(4, "big")))  # as one of two hours
    assert len(read_video(tmp_path / "c.mov", 5)) == 5


def test_fonts_covers_and_indexes_of_a_matroska_are_no_fault(tmp_path: Path) -> None:
    plain = clip(tmp_path / "c.mkv", 40)
    content, wanted = plain.read_bytes(), [frame.tobytes() for frame in read_video(plain, 30)]
    element = hostile_media.element
    font = element("1941A469", element("61A7", element("466E", b"a.ttf") + element("465C", bytes(2**27))))
    tags = element("1254C367", element("7373", element("67C8", element("45A3", b"C") + element("4487", b"x" * 2**23))))
    cues = element("1C53BB6B", element("BB", element("B3", b"\1") + element("B7", element("F7", b"\1"))) * 100_000)
    cluster = content.index(b"\x1f\x43\xb6\x75")
    segment = content.index(b"\x18\x53\x80\x67")
    live = content[: segment + 4] + b"\1" + b"\xff" * 7 + content[segment + 12 : cluster + 4] + b"\1" + b"\xff" * 7
    size = 9 - content[cluster + 4].bit_length()
    for made in (content[:cluster] + font + tags + cues + content[cluster:], live + content[cluster + 4 + size :]):
        plain.write_bytes(made)
        check_video(plain, 30, 16)
        assert [frame.tobytes() for frame in read_video(plain, 30)] == wanted


@pytest.mark.parametrize("key", ["title", "comment"])
@pytest.mark.parametrize("name", ["c.mp4", "c.mov", "c.m4v"])
def test_a_title_may_be_of_anything(name: str, key: str, tmp_path: Path) -> None:
    """Of elephants, which have trunks, and of workflows, which truncate; these begin like parts of an index."""
    written = '{"truncate": false} An elephant lifts its trunk; an Edelstein, a steelstring, a trakehner, stsz cmov....dcom '
    flags = "faststart+use_metadata_tags" if name == "c.m4v" else "faststart"
    for text in (written, written * 400):
        path = clip(tmp_path / name, metadata={key: text}, options={"movflags": flags})
        assert written[:40].encode() in path.read_bytes()
        for read in VIDEO_READERS:
            read(path)
