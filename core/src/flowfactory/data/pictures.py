"""Pictures that prompts bring: read as 8-bit RGB, whoever made them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from flowfactory.data.file_kinds import BoundedFile, name_kind
from flowfactory.data.picture_metadata import SEGMENTS, check_metadata
from flowfactory.errors import UserError
from flowfactory.untrusted_files import Refused

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
"""What Pillow opens. Others it hands to programs, such as EPS to Ghostscript, or hardly anybody has tried to break."""
PIXELS = 178_956_970
"""The most of a picture: Pillow's own bound, which every library that is loaded may change."""
BEFORE_PIXELS = 2**27
"""Bytes of metadata before the pixels; of WebP, which is read at once, all of the file."""
PACKED = 2**24
"""The most pixels of a BMP with run lengths, which Pillow unpacks one by one."""
SCANS = 20
"""So often may a JPEG of PIXELS go over itself, and a smaller one more often in proportion; cameras do so up to 12 times."""


def read_picture(path: Path) -> Image.Image:
    """The picture in RGB with 8 bits, turned as its camera says, white where it is transparent; of an animation the first.

    UserError: it cannot be read, or which of its levels is white is not known.
    """
    with _open_file(path) as picture:
        kind = picture.format
        _check_scans(picture)
        return lay_on_white(_reduce_to_8_bits(ImageOps.exif_transpose(picture), kind))


def check_picture(path: Path, whole: bool = True) -> tuple[int, int]:
    """Width and height in pixels, before it is turned.

    UserError: :func:`read_picture` refuses it, as far as can be told in a fraction of its time, or where it is not ``whole``
    from its header.
    """
    with _open_file(path) as picture:
        size = picture.size
        if whole and picture.format == "PNG":
            picture.verify()  # its checksums
        elif whole:
            _check_scans(picture)
            picture.draft(None, (1, 1))  # of a JPEG an eighth
            _reduce_to_8_bits(picture, picture.format).load()
        return size


def open_picture(file: Any, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The picture in ``file``, by its content, of which the header alone is read.

    Refused: it has more than PIXELS, parts that are larger, or too much beside them. UnidentifiedImageError: it is none of
    ``formats``.
    What else a decoder stumbles over is raised as Pillow has it.
    """
    check_metadata(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of half of what is too large, and of what is odd in a stranger's header
            picture = Image.open(file, formats=formats)
    except Image.DecompressionBombError:
        raise Refused(TOO_LARGE) from None
    if max(picture.width * picture.height, _tile_pixels(picture)) > PIXELS:
        raise Refused(TOO_LARGE)
    if picture.info.get("compression") in (1, 2) and picture.width * picture.height > PACKED:  # of a BMP
        raise Refused(f"it is a packed BMP of more than {PACKED / 1e6:.0f} megapixels; save it as PNG or JPEG")
    return picture


TOO_LARGE = f"it has more than {PIXELS / 1e6:.0f} megapixels; make it smaller"


def _tile_pixels(picture: Image.Image) -> int:
    """The pixels of a tile of a TIFF, which is decoded whole, however small the picture is."""
    tags: Any = getattr(picture, "tag_v2", {})
    width, height = (tags.get(tag, 1) for tag in (322, 323))
    return int(width) * int(height)


def _check_scans(picture: Any) -> None:
    """Refused: a JPEG is decoded over and over again, which takes hours."""
    if picture.format not in ("JPEG", "MPO"):
        return
    place = picture.fp.tell()
    scans = _count_scans(picture.fp)
    picture.fp.seek(place)
    if scans > SCANS * max(1, PIXELS // (picture.width * picture.height)):
        raise Refused(f"it is drawn in {scans} scans; save it anew, as PNG or JPEG")


def _count_scans(file: IO[bytes]) -> int:
    scans, place = 0, 2
    for _ in range(SEGMENTS):
        file.seek(place)
        block = file.read(2**14)
        found = _SEGMENT.search(block)
        if found and found[1]:  # the end, behind which phones keep whole videos
            return scans
        if found:
            scans += found[2] == b"\xda"
            place += found.start() + 2 + int.from_bytes(found[3], "big")
        elif len(block) < 4:
            return scans
        else:
            place += len(block) - 3
    raise Refused(f"it has more than {SEGMENTS} segments; save it anew, as PNG or JPEG")


_SEGMENT = re.compile(rb"\xff(?:(\xd9)|([\x01-\xcf\xda-\xfe])(..))", re.DOTALL)


@contextmanager
def _open_file(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in open_picture, of what is read later
            with closing(BoundedFile(path, BEFORE_PIXELS)) as file, _open_named(file) as picture:
                yield picture
    except Refused as refused:
        raise UserError(f"picture {path}: {refused}") from refused
    except Image.DecompressionBombError as error:  # of a part that is larger than the header says
        raise UserError(f"picture {path}: {TOO_LARGE}") from error
    except Exception as error:  # Pillow raises whatever a decoder stumbles over
        problem = str(error).partition("\n")[0] or type(error).__name__
        remedy = next((told for word, told in REMEDIES.items() if word in problem), "save it anew, as PNG or JPEG")
        raise UserError(f"picture {path}: cannot be read: {problem}; {remedy}") from error


def _open_named(file: BoundedFile) -> Image.Image:
    """As :func:`open_picture`. Refused: more comes before its pixels than is read, or it is no picture, and what it is."""
    kind = name_kind(file.head())
    try:
        picture = open_picture(file)
    except UnidentifiedImageError as error:
        file.check()
        remedy = "give a picture" if kind and kind.sort in ("video", "sound") else "save it as PNG or JPEG"
        what = kind.refusal(remedy) if kind and kind.name not in READ else f"no kind of picture that is known; {remedy}"
        raise Refused(f"cannot be read: {what}") from error
    except Exception:
        file.check()
        raise
    file.lift()
    return picture


REMEDIES = {
    "MAX_TEXT": "save it without its texts and its colour profile",
    "white": "save it with 8 bits, as PNG or JPEG",  # of _reduce_to_8_bits
}
"""What to do, by a word of what a decoder says."""
READ = ("PNG", "JPEG", "WebP", "GIF", "TIFF", "BMP")  # FORMATS as they are written


def _reduce_to_8_bits(picture: Image.Image, kind: str | None) -> Image.Image:
    """The picture, with 8 bits if it was grey with more. ValueError: which level is white is not known."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind == "PNG"):  # of which older Pillows say I
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


def lay_on_white(picture: Image.Image) -> Image.Image:
    """The picture in RGB, white where it is transparent."""
    if picture.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in picture.info:
        return picture.convert("RGB")
    picture = picture.convert("LA") if picture.mode == "La" else picture
    seen = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
