"""What a picture tells beside its pixels, looked at before Pillow makes of it what takes hours and gigabytes."""

from __future__ import annotations

import re
from typing import IO, Any, Literal

from PIL.JpegImagePlugin import MARKER

from flowfactory.untrusted_files import Refused

SEGMENTS = 100_000  # of a JPEG of a gigabyte
EXIF, PHOTOSHOP = 2**22, 2**23
"""Bytes of all such segments of a JPEG: Pillow copies those of Exif with each that follows, and takes Photoshop's apart."""
NUMBERS = 2**20
"""In the tags of a TIFF: a picture in tiles of 16 x 16 has two for each of up to 500,000."""
REMEDY = "save it anew, as PNG or JPEG"


def check_metadata(file: IO[bytes]) -> None:
    """Refused: it is a JPEG or a TIFF that tells far more than pictures do; ``file`` is else back at its beginning."""
    begin = file.read(16)
    if begin.startswith(b"\xff\xd8\xff"):
        _check_segments(file)
    elif begin[:2] in (b"II", b"MM") and (42 in begin[2:4] or 43 in begin[2:4]):
        _check_tags(file, begin)
    file.seek(0)


def _check_segments(file: IO[bytes]) -> None:
    place, exif, photoshop = 2, 0, 0
    for _ in range(SEGMENTS):
        file.seek(place)
        block = file.read(64)
        found = _MARKER.search(block)
        if found is None or found.start():
            place += found.start() if found else max(1, len(block) - 1)
            if len(block) < 2:
                return
            continue
        marker: Any = MARKER.get(0xFF00 | block[1])
        if marker is None or block[1] == 0xDA:  # what Pillow does not know, or the first scan
            return
        place += 2
        if marker[2] is None:
            continue
        length = int.from_bytes(block[2:4], "big")
        exif += length * (block[1] == 0xE1 and block.startswith(b"Exif\0\0", 4))
        photoshop += length * (block[1] == 0xED and block.startswith(b"Photoshop 3.0\0", 4))
        place += max(2, length)
        if exif > EXIF or photoshop > PHOTOSHOP:
            name, most = ("Exif", EXIF) if exif > EXIF else ("Photoshop", PHOTOSHOP)
            raise Refused(f"it has more than {most >> 20} MiB of {name} beside its pixels; {REMEDY}")


_MARKER = re.compile(rb"\xff[\x01-\xfe]")


def _check_tags(file: IO[bytes], begin: bytes) -> None:
    order: Literal["little", "big"] = "big" if begin[:2] == b"MM" else "little"
    wide = begin[2] == 43  # as Pillow has it

    def number(content: bytes) -> int:
        return int.from_bytes(content, order)

    file.seek(number(begin[8:16] if wide else begin[4:8]))
    tags, size = number(file.read(8 if wide else 2)), 20 if wide else 12
    content = file.read(size * min(tags, 2**16))
    entries = [content[place : place + size] for place in range(0, len(content), size)]
    numbers = sum(number(entry[4 : 12 if wide else 8]) for entry in entries if number(entry[2:4]) not in _TEXTS)
    if numbers > NUMBERS or tags >= 2**16:
        raise Refused(f"its tags have more than {NUMBERS} numbers; {REMEDY}")


_TEXTS = (1, 2, 7)  # bytes, which Pillow keeps as they are, text, and what is not said
