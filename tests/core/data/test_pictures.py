"""A picture of any kind comes as 8-bit RGB as a viewer shows it on white, or is refused in one line."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from flowfactory.data import prompts
from flowfactory.data.pictures import check_picture, read_picture
from flowfactory.errors import UserError
from flowfactory.testing import TwoParameterConfig
from flowfactory.types import Prompt

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
EIGHT_BITS = np.round(RAMP * 255)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("p.png", (RAMP * 65535).round().astype(np.uint16)),
        ("p.tif", (RAMP * 65535).round().astype(np.uint16)),
        ("p.tiff", (RAMP * 65535).round().astype(">u2")),
        ("f.tif", RAMP.astype(np.float32)),
        ("p8.png", EIGHT_BITS.astype(np.uint8)),
    ],
)
def test_a_grey_ramp_stays_one_however_many_bits_it_has(name: str, levels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(levels).save(tmp_path / name)
    read = np.asarray(read_picture(tmp_path / name)).astype(float)
    assert read.shape == (8, 8, 3)
    assert np.abs(read - EIGHT_BITS[..., None]).max() <= 1
    assert abs(read.mean() - 127.5) < 0.5


@pytest.mark.parametrize(
    ("levels", "sentence"),
    [
        ((RAMP * 65535).astype(np.int32), "its levels have 32 bits, and which of them is white is not known"),
        ((RAMP * 255).astype(np.float32), "its levels are numbers from 0 to 255, and white is 1"),
        (np.full((2, 2), -0.5, np.float32), "its levels are numbers from -0.5 to -0.5, and white is 1"),
        (np.full((2, 2), np.nan, np.float32), "its levels are numbers from nan to nan, and white is 1"),
    ],
)
def test_levels_whose_white_is_not_known_are_refused(levels: np.ndarray, sentence: str, tmp_path: Path) -> None:
    Image.fromarray(levels).save(tmp_path / "p.tif")
    assert refusal(tmp_path / "p.tif") == f"cannot be read: {sentence}; save it with 8 bits, as PNG or JPEG"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        read_picture(path)
    sentence = str(refused.value)
    assert sentence.startswith(f"picture {path}: ")
    assert "\n" not in sentence
    return sentence.removeprefix(f"picture {path}: ")


RED, CLEAR, HALF = (200, 0, 0, 255), (0, 200, 0, 0), (200, 0, 0, 128)
SHOWN = {RED: (200, 0, 0), CLEAR: (255, 255, 255), HALF: (227, 127, 127)}  # 255 + (200 - 255) 128 / 255, 255 (1 - 128 / 255)


def rgba(*colours: tuple[int, int, int, int]) -> Image.Image:
    return Image.fromarray(np.array([[*colours]] * 2, np.uint8))


@pytest.mark.parametrize("name", ["p.png", "p.webp", "p.tif"])
def test_transparent_pixels_are_seen_on_white(name: str, tmp_path: Path) -> None:
    colours = (RED, CLEAR, HALF)
    rgba(*colours).save(tmp_path / name, **({"lossless": True, "exact": True} if name == "p.webp" else {}))
    read = read_picture(tmp_path / name)
    assert [read.getpixel((x, 1)) for x in range(3)] == [pytest.approx(SHOWN[colour], abs=1) for colour in colours]


def palette(path: Path, **options: object) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([200, 0, 0, 0, 200, 0])
    picture.putpixel((1, 0), 1)
    picture.save(path, **options)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("index.png", lambda path: palette(path, transparency=1)),
        ("levels.png", lambda path: palette(path, transparency=bytes([255, 0]))),
        ("p.gif", lambda path: palette(path, transparency=1)),
        ("colour.png", lambda path: rgba(RED, CLEAR).convert("RGB").save(path, transparency=(0, 200, 0))),
    ],
)
def test_a_transparent_colour_is_white(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / name)
    read = read_picture(tmp_path / name)
    assert [read.getpixel((x, 0)) for x in range(2)] == [(200, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(("mode", "clear", "dark"), [("LA", (7, 0), (7, 255)), ("L", 9, 7), ("I;16", 9 * 257, 7 * 257)])
def test_a_transparent_grey_is_white(mode: str, clear: object, dark: object, tmp_path: Path) -> None:
    picture = Image.new(mode, (2, 1), dark)
    picture.putpixel((1, 0), clear)
    picture.save(tmp_path / "p.png", **({} if mode == "LA" else {"transparency": clear}))
    read = read_picture(tmp_path / "p.png")
    assert [read.getpixel((x, 0)) for x in range(2)] == [(7, 7, 7), (255, 255, 255)]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_opaque_pictures_keep_their_colours(mode: str, tmp_path: Path) -> None:
    expected = Image.new("RGB", (8, 8), "white").convert(mode)
    name = "p.jpg" if mode in ("CMYK", "YCbCr") else "p.png"
    expected.save(tmp_path / name)
    read = read_picture(tmp_path / name)
    assert (read.mode, read.size) == ("RGB", (8, 8))
    assert np.asarray(read).min() >= 254


@pytest.mark.parametrize("name", ["p.gif", "p.webp", "p.png"])
def test_of_an_animation_the_first_picture_is_read(name: str, tmp_path: Path) -> None:
    first, *others = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime"))
    first.save(tmp_path / name, save_all=True, append_images=others)
    assert read_picture(tmp_path / name).getpixel((1, 1)) == pytest.approx((255, 0, 0), abs=3)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def test_a_picture_of_far_too_many_pixels_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(png(30_000, 30_000))
    assert refusal(tmp_path / "p.png") == "it has more than 179 megapixels; make it smaller"
    with pytest.raises(UserError, match="it has more than 179 megapixels"):
        check_picture(tmp_path / "p.png")
    (tmp_path / "p.png").write_bytes(png(10_000, 10_000))  # a hundred, of which Pillow warns
    assert check_picture(tmp_path / "p.png") == (10_000, 10_000)


def test_a_picture_with_much_text_is_read_or_one_line(tmp_path: Path) -> None:
    for packed in (False, True):
        text = PngImagePlugin.PngInfo()
        text.add_text("workflow", "x" * 3_000_000, zip=packed)
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{packed}.png", pnginfo=text)
    assert read_picture(tmp_path / "False.png").getpixel((0, 0)) == (255, 0, 0)
    assert refusal(tmp_path / "True.png").endswith("; save it without its texts and its colour profile")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "no kind of picture that is known; save it as PNG or JPEG"),
        (b"RIFF\0\0\0\0WAVE", "this is WAV; give a picture"),
        (png(64, 64)[:-20], "; save it anew, as PNG or JPEG"),
        (png(64, 64), "; save it anew, as PNG or JPEG"),
    ],
)
def test_what_is_no_whole_picture_is_one_line(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(content)
    told = refusal(tmp_path / "p.png")
    assert told.startswith("cannot be read: ")
    assert told.endswith(sentence)


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.webp", "p.gif", "p.tif", "p.bmp"])
def test_what_is_cut_short_is_known_before_it_is_read_as_a_whole(name: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    assert check_picture(tmp_path / name) == (48, 64)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    for read in (read_picture, check_picture):
        with pytest.raises(UserError, match=r"^picture .*: cannot be read: "):
            read(tmp_path / name)


@pytest.mark.parametrize("levels", [RAMP.astype(np.int32), (RAMP * 255).astype(np.float32)])
def test_levels_whose_white_is_not_known_are_refused_by_the_check_too(levels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(levels).save(tmp_path / "p.tif")
    with pytest.raises(UserError) as refused:
        check_picture(tmp_path / "p.tif")
    assert str(refused.value).removeprefix(f"picture {tmp_path / 'p.tif'}: ") == refusal(tmp_path / "p.tif")


def test_of_very_many_pictures_the_headers_alone_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "LOOKED_INTO", 1)
    for name in ("a.jpg", "b.jpg"):
        Image.effect_noise((64, 64), 50).save(tmp_path / name)
    cut = (tmp_path / "a.jpg").read_bytes()[:500]
    (tmp_path / "b.jpg").write_bytes(cut)
    brought = [Prompt("", index, images=(tmp_path / name,)) for index, name in enumerate(("a.jpg", "b.jpg"))]
    prompts.check_files(brought, TwoParameterConfig(), 1)
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"b\.jpg: cannot be read"):
        prompts.check_files(brought, TwoParameterConfig(), 1)
    (tmp_path / "a.jpg").write_bytes(cut)
    with pytest.raises(UserError, match=r"a\.jpg: cannot be read"):
        prompts.check_files(brought, TwoParameterConfig(), 1)
