"""What the index of an MP4 makes FFmpeg hold in memory, before FFmpeg reads it: a kilobyte may tell of billions of frames."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from typing import IO

from flowfactory.untrusted_files import Refused

ENTRIES = 16_000_000
"""Frames of pictures and sound that a video may have: a day's. FFmpeg keeps 24 bytes for each."""
BOX = 2**27  # bytes of a box that FFmpeg looks into
BOXES = 200_000  # beside and behind each other
INNER_BOXES = 2_000_000  # a day's of fragments
DEEPEST = 12  # FFmpeg stops at 10
REMEDY = "save it anew, as MP4"
TOO_MANY = f"its index is of more than {ENTRIES // 10**6} million frames; {REMEDY}"
_FIRST = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"moof", b"styp", b"sidx", b"pnot", b"uuid", b"udta")
_CONTAINERS = {
    *(b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"mvex", b"moof", b"traf", b"udta", b"meta", b"ilst", b"dinf"),
    *(b"tref", b"gmhd", b"wave", b"sinf", b"schi", b"iprp", b"ipco", b"tapt"),
}
"""Whose boxes FFmpeg looks at; texts are in others."""
_HANDLER = re.compile(rb"(?:.{4})*?hdlr", re.DOTALL)
_SPARE = (b"free", b"skip", b"hoov")
_TABLES = (b"stsz", b"stz2", b"stts", b"hdlr", b"elst")
_SOUND = {b"soun", b"mdir", b"mdta", b"alis", b"url ", b"rsrc"}  # and what is said of other things in a track of sound


def check_index(file: IO[bytes], size: int) -> bool:
    """Whether ``file`` of ``size`` bytes begins as an MP4 or QuickTime; it is then back at its beginning.

    Refused: it is one, and its index is compressed, or tells of more than there is.
    """
    entries = place = 0
    inner = count()
    for _ in range(BOXES):
        file.seek(place)
        head = file.read(24)
        kind, start, end = _read_head(head, 0, size - place)
        if place == 0 and kind not in _FIRST:
            file.seek(0)
            return False
        if end < start:
            break
        if _first_inside(head, kind, start) is not None or kind in (*_TABLES, b"trun", b"stsd", b"cmov"):
            if end > BOX:
                raise Refused(f"its index is larger than {BOX >> 20} MiB; {REMEDY}")
            file.seek(place)
            entries += _count_entries(file.read(end), size, inner)
        if entries > ENTRIES:
            raise Refused(TOO_MANY)
        place += end
        if place >= size:
            break
    else:
        raise Refused(TOO_MANY)
    file.seek(0)
    return True


def _read_head(box: bytes, place: int, end: int) -> tuple[bytes, int, int]:
    """The name of the box at ``place``, where its content begins, and where it ends, before that if it is none."""
    length, start = int.from_bytes(box[place : place + 4], "big"), place + 8
    if length == 1 and end - place >= 16:
        length, start = int.from_bytes(box[place + 8 : place + 16], "big"), place + 16
    return box[place + 4 : place + 8], start, end if length == 0 else min(end, place + length)


def _first_inside(box: bytes, kind: bytes, start: int) -> int | None:
    """Where the first box within this one begins, whose content begins at ``start``; None where FFmpeg looks for none."""
    if kind in _SPARE:  # it takes what is marked as free for an index where it looks like one
        return start if box[start + 4 : start + 8] in (b"mvhd", b"cmov") else None
    return start if kind in _CONTAINERS else None


def _walk(box: bytes, place: int, end: int, inner: Iterator[int], depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and end of the content of each box from ``place`` to ``end``, with those inside, as FFmpeg finds them."""
    while end - place >= 8 and depth < DEEPEST:
        if next(inner) > INNER_BOXES:
            raise Refused(TOO_MANY)
        kind, start, stop = _read_head(box, place, end)
        if stop < start:
            return
        yield kind, start, stop
        first = _first_inside(box, kind, start)
        if kind == b"meta":  # FFmpeg looks for the first that it knows
            handler = _HANDLER.match(box, start, stop)
            first = handler.end() - 8 if handler else None
        if kind == b"stsd":  # each of which has its boxes at another place
            for found in re.finditer(rb"trun|cmov|stsz|stz2|stts|hdlr|elst", box[start:stop]):
                yield found[0], start + found.end(), stop
        elif first is not None:
            yield from _walk(box, first, stop, inner, depth + 1)
        place = stop


def _count_entries(box: bytes, size: int, inner: Iterator[int]) -> int:
    """How many entries FFmpeg makes of what ``box`` says, of a file of ``size`` bytes.

    Refused: it tells of more frames than there are bytes, or is compressed.
    """
    entries = 0
    tracks: list[dict[bytes, list[bytes]]] = [{}]
    for kind, start, stop in _walk(box, 0, len(box), inner):
        if kind == b"cmov":
            raise Refused(f"its index is compressed; {REMEDY}")
        if kind == b"trak":
            tracks.append({})
        elif kind == b"trun":
            entries += _count_run(box[start : start + 8], stop - start - 8, size)
        elif kind in _TABLES:
            tracks[-1].setdefault(kind, []).append(box[start : min(stop, start + 16)])
    return entries + sum(_count_samples(track, size) for track in tracks)


def _number(content: bytes, place: int) -> int:
    return int.from_bytes(content[place : place + 4], "big")


def _count_run(head: bytes, room: int, size: int) -> int:
    told = _number(head, 4)
    each = 4 * (head[2] & 0xF).bit_count() if len(head) == 8 else 0
    if told * each > room or told > size:
        raise Refused(f"its index tells of {told} frames, and it has no room for them; {REMEDY}")
    return told


def _count_samples(track: dict[bytes, list[bytes]], size: int) -> int:
    """Of sound in a fixed size and rate, FFmpeg makes entries for chunks alone; each edit has entries of its own."""
    entries = sum(_number(table, 8) for table in track.get(b"stz2", ()))
    for table in track.get(b"stsz", ()):
        each, told = _number(table, 4), _number(table, 8)
        if each and _is_even_sound(track, told):
            continue
        if each * told > size:
            raise Refused(f"its index tells of {told} frames, and it has no room for them; {REMEDY}")
        entries += told
    return entries * max([1, *(_number(edits, 4) for edits in track.get(b"elst", ()))])


def _is_even_sound(track: dict[bytes, list[bytes]], told: int) -> bool:
    kinds = {table[8:12] for table in track.get(b"hdlr", ())}
    even = b"".join(number.to_bytes(4, "big") for number in (0, 1, told, 1))
    return len(track[b"stsz"]) == 1 and track.get(b"stts") == [even] and b"soun" in kinds and kinds <= _SOUND
