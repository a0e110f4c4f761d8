"""What the index of an MP4 makes FFmpeg hold in memory, before FFmpeg reads it: a kilobyte may tell of billions of frames."""

from __future__ import annotations

import re
from typing import IO

from flowfactory.untrusted_files import Refused

ENTRIES = 16_000_000
"""Frames of pictures and sound that a video may have: a day's. FFmpeg keeps 24 bytes for each."""
BOX = 2**27  # bytes of a box other than the frames themselves
BOXES = 200_000


def check_index(file: IO[bytes], size: int) -> bool:
    """Whether ``file`` of ``size`` bytes begins as an MP4 or QuickTime; it is then back at its beginning.

    Refused: it is one, and its index is compressed, or tells of more than there is.
    """
    entries = place = 0
    for _ in range(BOXES):
        file.seek(place)
        head = file.read(24)
        length, kind, content = int.from_bytes(head[:4], "big"), head[4:8], head[12:16]
        if place == 0 and kind not in _FIRST:
            file.seek(0)
            return False
        start = place + 8
        if length == 1:
            length, start, content = int.from_bytes(head[8:16], "big"), place + 16, head[20:24]
        end = size if length == 0 else min(size, place + length)
        if end < start:
            break
        # FFmpeg takes what is marked as free for an index where it looks like one
        if kind not in (b"mdat", b"free", b"skip") or content in (b"mvhd", b"cmov"):
            entries += _count_box(file, start, end, size)
        if entries > ENTRIES:
            raise Refused(TOO_MANY)
        place = end
        if place >= size:
            break
    else:
        raise Refused(TOO_MANY)
    file.seek(0)
    return True


def _count_box(file: IO[bytes], start: int, end: int, size: int) -> int:
    if end - start > BOX:
        raise Refused(f"its index is larger than {BOX >> 20} MiB; {REMEDY}")
    file.seek(start)
    return count_entries(file.read(end - start), size)


REMEDY = "save it anew, as MP4"
TOO_MANY = f"its index is of more than {ENTRIES // 10**6} million frames; {REMEDY}"
_FIRST = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"moof", b"styp", b"sidx", b"pnot", b"uuid", b"udta")


def count_entries(box: bytes, size: int) -> int:
    """How many entries FFmpeg makes of what ``box`` says, of a file of ``size`` bytes.

    The fields are found by their names wherever they are, as FFmpeg takes them in places where they do not belong; what
    looks like a name hides no other that overlaps it.
    Refused: it tells of more frames than there are bytes, or is compressed.
    """
    if re.search(rb"cmov.{4}dcom", box, re.DOTALL):
        raise Refused(f"its index is compressed; {REMEDY}")
    fragments = sum(_count_run(found, box, size) for found in re.finditer(rb"trun(?=(.{8}))", box, re.DOTALL))
    tracks = re.split(rb"trak", box)
    samples = sum(_count_samples(track, size) for track in tracks)
    edits = [int.from_bytes(found[1], "big") for found in re.finditer(rb"elst(?=.{4}(.{4}))", box, re.DOTALL)]
    return fragments + samples * max([1, *edits])


def _count_run(found: re.Match[bytes], box: bytes, size: int) -> int:
    fields, count = int.from_bytes(found[1][1:4], "big"), int.from_bytes(found[1][4:], "big")
    each = 4 * (fields >> 8 & 0xF).bit_count()
    if count * each > len(box) - found.end() - 8 or count > size:
        raise Refused(f"its index tells of {count} frames, and it has no room for them; {REMEDY}")
    return count


def _count_samples(track: bytes, size: int) -> int:
    """Of sound in a fixed size and rate, FFmpeg makes entries for chunks alone."""
    entries = sum(int.from_bytes(found[1], "big") for found in re.finditer(rb"stz2(?=.{8}(.{4}))", track, re.DOTALL))
    for found in re.finditer(rb"stsz(?=.{4}(.{4})(.{4}))", track, re.DOTALL):
        each, count = (int.from_bytes(field, "big") for field in found.groups())
        if each and _is_even_sound(track, count):
            continue
        if each * count > size:
            raise Refused(f"its index tells of {count} frames, and it has no room for them; {REMEDY}")
        entries += count
    return entries


def _is_even_sound(track: bytes, count: int) -> bool:
    once = all(track.count(name) == 1 for name in (b"stsz", b"stts", b"hdlr"))
    even = b"stts" + bytes(4) + (1).to_bytes(4, "big") + count.to_bytes(4, "big") + (1).to_bytes(4, "big")
    return once and even in track and re.search(rb"hdlr.{8}soun", track, re.DOTALL) is not None
