"""What of a Matroska file shows frames, for FFmpeg, which would keep all else in memory, at up to thirty times its size."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from flowfactory.untrusted_files import Refused

BEGINNING = b"\x1a\x45\xdf\xa3"
SEGMENT, CLUSTER, BLOCK_GROUP = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\xa0"
TIME, BLOCK = b"\xe7", b"\xa3"
INFO, TRACKS = b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b"
HEADERS = 2**22
"""Bytes that may be told of its tracks. Fonts and covers, titles and indexes, of any size, are told elsewhere."""
ELEMENTS, ELEMENTS_OF_A_BLOCK, BETWEEN_BLOCKS = 20_000, 1000, 200_000
DEEPEST = 8
REMEDY = "save it anew, as MP4"
_ENDLESS = b"\x01" + b"\xff" * 7
_AHEAD = 2**16
# track, its video with colours and projection, sound, planes, packing, translation and additions; of a block, additions, slices
_PARENTS = {
    *(b"\xae", b"\xe0", b"\x55\xb0", b"\x55\xd0", b"\x76\x70", b"\xe1", b"\xe2", b"\xe3", b"\xe4", b"\xe9", b"\x6d\x80"),
    *(b"\x62\x40", b"\x50\x34", b"\x50\x35", b"\x47\xe7", b"\x66\x24", b"\x69\x24", b"\x41\xe4", b"\x75\xa1", b"\xa6"),
    *(b"\x8e", b"\xe8"),
}


def begins_as_matroska(file: Any) -> bool:
    """Whether ``file``, which is at its beginning, does; it is then back there."""
    begin = file.read(len(BEGINNING))
    file.seek(0)
    return bool(begin == BEGINNING)


class MatroskaFrames:
    """A Matroska file that is read from its beginning to its end, with what is known of its tracks, and the frames.

    What is left out: tags, chapters, indexes, attachments, what leads elsewhere, and padding. Sizes that this changes are
    written as unknown, as those of live streams are.
    """

    def __init__(self, file: Any) -> None:
        """Refused: more is told of its tracks than of any."""
        self._file = file
        self._ahead, self._ahead_at = b"", 0
        self._since_block = 0
        head, first = self._read_headers()
        self._ready = bytearray(head)
        self._frames = self._clusters(first)

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, or fewer at the end."""
        while len(self._ready) < size and (piece := next(self._frames, None)) is not None:
            self._ready += piece
        found = bytes(self._ready[:size])
        del self._ready[:size]
        return found

    def _read_headers(self) -> tuple[bytes, int]:
        """What is told before the first cluster, and where that is, or where nothing more can be read."""
        found, place, left = b"", 0, ELEMENTS
        while element := self._element(place):
            name, start, end = element
            if name == CLUSTER:
                break
            if name == SEGMENT:
                found, place = found + SEGMENT + _ENDLESS, start
                continue
            if end is None:
                raise Refused(f"its headers are damaged; {REMEDY}")
            if name in (BEGINNING, INFO, TRACKS):
                if len(found) + end - place > HEADERS:
                    raise Refused(f"more than {HEADERS >> 20} MiB of it are about its tracks; {REMEDY}")
                left = self._count(start, end, left)
                if left < 0:
                    raise Refused(f"its headers are damaged, or tell of more than {ELEMENTS} things; {REMEDY}")
                found += b"".join(self._pieces(place, end))
            place = end
        return found, place

    def _clusters(self, place: int) -> Iterator[bytes]:
        while element := self._element(place) or self._find_cluster(place):
            name, start, end = element
            if name == CLUSTER:
                yield CLUSTER + _ENDLESS
                place = yield from self._blocks(start, end)
            elif name == SEGMENT or end is None:
                place = start
            else:
                place = end

    def _blocks(self, place: int, end: int | None) -> Generator[bytes, None, int]:
        """The times and blocks of a cluster; returns where it ends."""
        while (end is None or place < end) and (element := self._element(place)):
            name, start, stop = element
            if stop is None or (end is None and len(name) == 4):  # the next cluster, or what is beside clusters
                break
            if name in (TIME, BLOCK) or (name == BLOCK_GROUP and self._count(start, stop, ELEMENTS_OF_A_BLOCK) >= 0):
                yield from self._pieces(place, stop)
                self._since_block = 0 if name != TIME and stop - start > 4 else self._since_block
            place = stop
        return place if end is None else max(place, end)

    def _count(self, place: int, end: int, left: int, depth: int = 0) -> int:
        """``left``, less the elements from ``place`` to ``end``; negative where they are more, or no elements."""
        while place < end and left >= 0:
            element = self._element(place)
            if element is None or depth > DEEPEST:
                return -1
            name, start, stop = element
            if stop is None or stop > end:
                return -1
            left = self._count(start, stop, left - 1, depth + 1) if name in _PARENTS else left - 1
            place = stop
        return left

    def _element(self, place: int) -> tuple[bytes, int, int | None] | None:
        """Its name, where its content begins and ends, None for unknown; None where there is no element."""
        head = self._at(place, 12)
        named = 9 - head[0].bit_length() if head else 9
        self._since_block += 1
        if self._since_block > BETWEEN_BLOCKS or named > 4 or len(head) <= named or not head[named]:
            return None
        sized = 9 - head[named].bit_length()
        start = place + named + sized
        told = int.from_bytes(head[named : named + sized], "big") & (1 << 7 * sized) - 1
        unknown = told == (1 << 7 * sized) - 1
        return head[:named], start, None if unknown else start + told

    def _find_cluster(self, place: int) -> tuple[bytes, int, int | None] | None:
        """The next behind what is damaged."""
        while ahead := self._at(place, _AHEAD):
            if (found := ahead.find(CLUSTER)) >= 0:
                return self._element(place + found)
            if len(ahead) < _AHEAD:
                return None
            place += _AHEAD - 3
        return None

    def _pieces(self, place: int, end: int) -> Iterator[bytes]:
        while place < end and (piece := self._at(place, min(_AHEAD, end - place))):
            yield piece
            place += len(piece)

    def _at(self, place: int, size: int) -> bytes:
        """At most ``size`` bytes from ``place``, of which a piece is read ahead."""
        begin = place - self._ahead_at
        if begin < 0 or begin + size > len(self._ahead):
            self._file.seek(place)
            self._ahead, self._ahead_at, begin = self._file.read(_AHEAD), place, 0
        return self._ahead[begin : begin + size]
