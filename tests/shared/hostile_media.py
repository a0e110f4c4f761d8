"""Files of a few kilobytes that make gigabytes of memory or hours of work, or that lead to other files."""

from __future__ import annotations

import struct
import zlib
from functools import cache
from io import BytesIO

from PIL import Image


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, before: bytes = b"") -> bytes:
    """A grey PNG that claims a size, with ``before`` its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@cache
def packed_zeros(megabytes: int) -> bytes:
    """What zlib makes so many megabytes of."""
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def tiff_of_one_tile(side: int, tile: int, content: bytes) -> bytes:
    """A grey TIFF of ``side`` x ``side`` pixels in a deflated tile of ``tile`` x ``tile``."""
    tags = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 0, 325: len(content)}
    tags[324] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


def bmp_with_run_lengths(width: int, height: int, content: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(content), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(content), 0, 0, 1078) + head + bytes(1024) + content


def jpeg(width: int, height: int, **options: object) -> bytes:
    file = BytesIO()
    Image.new("RGB", (width, height), (200, 0, 0)).save(file, format="JPEG", **options)
    return file.getvalue()


def segments(number: int, begin: bytes, count: int, size: int = 65_500) -> bytes:
    """The application segments of a JPEG."""
    content = begin + bytes(size - len(begin))
    return (b"\xff" + bytes([0xE0 + number]) + struct.pack(">H", size + 2) + content) * count


def jpeg_that_tells(*told: bytes) -> bytes:
    whole = jpeg(64, 64)
    return whole[:2] + b"".join(told) + whole[2:]


def tiff_of_numbers(kind: int, size: int, tags: tuple[int, ...], count: int) -> bytes:
    """A grey TIFF of 8 x 8 pixels, with ``count`` numbers of ``size`` bytes in each of some ``tags``."""
    entries = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 400, 277: 1, 278: 8, 279: 64}
    told = {tag: (4, 1, value) for tag, value in entries.items()} | dict.fromkeys(tags, (kind, count, 400))
    packed = b"".join(struct.pack("<HHII", tag, *told[tag]) for tag in sorted(told))
    return b"II*\0" + struct.pack("<IH", 8, len(told)) + packed + bytes(500) + bytes(size * count)


def jpeg_of_many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes ``scans`` times."""
    content = jpeg(side, side, progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * (scans - 1) + b"\xff\xd9"


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0,\0\0\0\0\1\0\1\0\0\2\2\x44\1\0;"


def box(kind: bytes, *contents: bytes) -> bytes:
    """A box of an MP4."""
    content = b"".join(contents)
    return struct.pack(">I", 8 + len(content)) + kind + content


def full_box(kind: bytes, *contents: bytes) -> bytes:
    """A box with version 0 and no flags."""
    return box(kind, bytes(4), *contents)


def numbers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


MATRIX = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def index(count: int, size: int = 1, sound: bool = False, edits: bytes = b"", more: bytes = b"", before: bytes = b"") -> bytes:
    """The index of an MP4 that says that it has ``count`` frames of ``size`` bytes each."""
    if sound:
        entry = box(b"mp4a", bytes(6), b"\0\1", bytes(8), struct.pack(">HHHHI", 1, 16, 0, 0, 8000 << 16))
    else:
        entry = box(b"mp4v", bytes(6), b"\0\1", bytes(16), struct.pack(">HH", 64, 48), bytes(12), b"\0\1", bytes(36))
    times = numbers(2, 1, 1, max(1, count) - 1, 2)
    tables = {b"stsd": numbers(1) + entry, b"stts": times, b"stsc": numbers(1, 1, count, 1), b"stco": numbers(1, 48)}
    table = box(b"stbl", *(full_box(*one) for one in tables.items()), before, full_box(b"stsz", numbers(size, count)))
    handler = full_box(b"hdlr", bytes(4), b"soun" if sound else b"vide", bytes(13))
    media = box(b"mdia", full_box(b"mdhd", numbers(0, 0, 16, 1000), bytes(4)), handler, box(b"minf", table))
    track = full_box(b"tkhd", numbers(0, 0, 1, 0, 1000), bytes(16), MATRIX, numbers(64 << 16, 48 << 16))
    movie = full_box(b"mvhd", numbers(0, 0, 1000, 1000, 1 << 16), bytes(12), MATRIX, bytes(24), numbers(2))
    return box(b"moov", movie, box(b"trak", track, edits, media), more)


def mp4(*parts: bytes) -> bytes:
    return box(b"ftyp", b"isom", numbers(512), b"isomiso2mp41") + b"".join(parts) + box(b"mdat", bytes(1000))


def packed_index(megabytes: int) -> bytes:
    packed = box(b"cmvd", numbers(megabytes << 20), packed_zeros(megabytes))
    return box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), packed))


def fragments(count: int, runs: int, within: tuple[bytes, ...] = ()) -> bytes:
    """The index of an MP4 in fragments, whose one fragment tells of ``runs`` times ``count`` frames, ``within`` more boxes."""
    told = full_box(b"trun", numbers(count)) * runs
    for kind in within:
        told = box(kind, full_box(b"hdlr", bytes(20)) if kind == b"meta" else b"", told)
    run = box(b"traf", full_box(b"tfhd", numbers(1)), told)
    whole = index(0, more=box(b"mvex", full_box(b"trex", numbers(1, 1, 1, 1, 0))))
    return whole + box(b"moof", full_box(b"mfhd", numbers(1)), run)


def lend_frames(movie: bytes, name: str) -> bytes:
    """The QuickTime file ``movie``, without its frames, which it says are in the file ``name`` beside it."""
    told = name.encode()
    record = bytearray(150)
    record[10:12] = b"\1v"  # the volume
    record[50 : 51 + len(told)] = bytes([len(told)]) + told
    record[130:134] = b"\0\1\0\1"  # levels up and down
    path = struct.pack(">hH", 2, 2 + len(told)) + b"v:" + told + bytes(len(told) % 2) + struct.pack(">hH", -1, 0)
    reference = full_box(b"dref", numbers(1), box(b"alis", bytes(4), bytes(record), path))
    place = movie.index(b"dref") - 4
    longer = len(reference) - int.from_bytes(movie[place : place + 4], "big")
    changed = movie[:place] + reference + movie[place + len(reference) - longer :]
    for outer in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = changed.rindex(outer, 0, place) - 4
        changed = changed[:at] + numbers(int.from_bytes(changed[at : at + 4], "big") + longer) + changed[at + 4 :]
    frames = changed.index(b"mdat")
    end = frames - 4 + int.from_bytes(changed[frames - 4 : frames], "big")
    return changed[: frames + 4] + bytes(end - frames - 4) + changed[end:]


def element(name: str, content: bytes) -> bytes:
    """An element of a Matroska file."""
    return bytes.fromhex(name) + (len(content) | 1 << 56).to_bytes(8, "big") + content


def matroska(track: bytes = b"", before: bytes = b"", within: bytes = b"", behind: bytes = b"") -> bytes:
    """A Matroska file with more in its track, ``before`` its frames, ``within`` their cluster, and ``behind`` it."""
    size = element("E0", element("B0", numbers(64)) + element("BA", numbers(64)))
    about = element("D7", b"\1") + element("73C5", b"\1") + element("83", b"\1") + element("86", b"V_MPEG4/ISO/AVC") + size
    tracks = element("1654AE6B", element("AE", about + track))
    frames = element("1F43B675", element("E7", b"\0") + within + element("A3", b"\x81\0\0\x80" + bytes(50)))
    info = element("1549A966", element("2AD7B1", numbers(1_000_000)))
    return element("1A45DFA3", element("4282", b"matroska")) + element("18538067", info + tracks + before + frames + behind)


EDIT = numbers(9, 0, 1 << 16)
PICTURES = {
    "size.png": lambda: png(30_000, 30_000),
    "text.png": lambda: png(8, 8, chunk(b"zTXt", b"a\0\0" + packed_zeros(220))),
    "profile.png": lambda: png(8, 8, chunk(b"iCCP", b"a\0\0" + packed_zeros(220))),
    "pieces.png": lambda: png(8, 8, chunk(b"prVt", b"") * 30_000),
    "tile.tif": lambda: tiff_of_one_tile(16, 25_000, packed_zeros(220)),
    "scans.jpg": lambda: jpeg_of_many_scans(4000, 1000),
    "segments.jpg": lambda: (whole := jpeg(8, 8))[:2] + b"\xff\xe5\0\2" * 50_000 + whole[2:],
    "runs.bmp": lambda: bmp_with_run_lengths(100_000_000, 1, b"\1\1\0\0"),
    "canvas.gif": lambda: gif(65_535, 65_535),
}
"""By name, pictures that are refused."""

TOLD = {
    "exif.jpg": lambda: jpeg_that_tells(segments(1, b"Exif\0\0", 900)),
    "hidden.jpg": lambda: jpeg_that_tells(b"\xff\xfe\0\2..\xff\xff\xd9\xff\xf0\xff\xff", segments(1, b"Exif\0\0", 900)),
    "photoshop.jpg": lambda: jpeg_that_tells(segments(13, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000, 900)),
    "strips.tif": lambda: tiff_of_numbers(4, 4, (273, 279), 5_000_000),
    "ratios.tif": lambda: tiff_of_numbers(5, 8, (33_723,), 2_500_000),
}
"""By name, pictures that are refused for what they tell beside their pixels."""

VIDEOS = {
    "frames.mp4": lambda: mp4(index(170_000_000)),
    "sound.mp4": lambda: mp4(index(170_000_000, sound=True)),
    "hidden.mp4": lambda: mp4(box(b"free", index(170_000_000)[8:])),
    "edits.mp4": lambda: mp4(index(900, edits=box(b"edts", full_box(b"elst", numbers(50_000), EDIT * 50_000)))),
    "masked.mp4": lambda: mp4(index(170_000_000, before=box(b"abcd", b"stsz"))),
    "packed.mp4": lambda: mp4(packed_index(220)),
    "fragments.mp4": lambda: mp4(fragments(60_000_000, 3)),
    "nested.mp4": lambda: mp4(fragments(60_000_000, 3, (b"ilst", b"meta", b"udta"))),
}
"""By name, videos that are refused."""

MATROSKA = {
    "packings": lambda: matroska(element("6D80", b"\x62\x40\x80" * 10_000_000)),
    "planes": lambda: matroska(element("E2", element("E3", b"\xe4\x80" * 1_500_000))),
    "tracks": lambda: matroska(before=element("1654AE6B", b"\xae\x80" * 1_500_000)),
    "private": lambda: matroska(element("63A2", bytes(60_000_000))),
    "nested": lambda: matroska(b"\xae\xff" * 100_000),
    "tags": lambda: matroska(before=element("1254C367", element("7373", b"\x67\xc8\x80" * 5_000_000))),
    "attached": lambda: matroska(before=element("1941A469", b"\x61\xa7\x80" * 5_000_000)),
    "fonts": lambda: matroska(before=element("1941A469", element("61A7", element("465C", bytes(30_000_000))) * 2)),
    "chapters": lambda: matroska(before=element("1043A770", element("45B9", b"\xb6\x80" * 5_000_000))),
    "behind": lambda: matroska(behind=element("1254C367", element("7373", b"\x67\xc8\x80" * 5_000_000))),
    "additions": lambda: matroska(within=element("A0", element("75A1", b"\xa6\x80" * 5_000_000))),
    "padding": lambda: matroska(before=b"\xec\x80" * 5_000_000),
    "times": lambda: matroska(within=b"\xe7\x80" * 5_000_000),
}
"""By name, Matroska files whose headers, or what is beside their frames, would fill the memory."""
