"""What a file is, by how it begins: the names of what is no picture or no video, for the sentence that refuses it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from flowfactory.untrusted_files import Refused, open_regular

Sort = Literal["picture", "video", "sound", "other"]
HEAD = 1024  # bytes that are looked at
CALLS = 20_000


class Kind(NamedTuple):
    """Its name, and what sort of thing that is."""

    name: str
    sort: Sort

    def refusal(self, remedy: str) -> str:
        """That it is this and no other kind, and the ``remedy``."""
        return f"this is {self.name}; {'run git lfs pull' if 'LFS' in self.name else remedy}"


def name_kind(head: bytes) -> Kind | None:
    """What begins with ``head``, HEAD bytes or all; None where that is not known."""
    return next((kind for begins, kind in _KINDS if begins.match(head)), None)


def sort_of(path: Path) -> Sort | None:
    """The sort of thing that the file is, by how it begins; None where that is not known, or it cannot be read."""
    try:
        with open_regular(path) as file:
            kind = name_kind(file.read(HEAD))
    except (OSError, Refused):
        return None
    return kind and kind.sort


class BoundedFile:
    """A regular file, of which a decoder may read ``budget`` bytes, in CALLS pieces, until it knows what is in it.

    Behind them it seems to end, since FFmpeg has no way to pass on what is raised. whole: the file without that bound.
    """

    def __init__(self, path: Path, budget: int) -> None:
        """Refused: it is no regular file, or cannot be opened."""
        try:
            self.whole = open_regular(path)
        except OSError as error:
            raise Refused(f"cannot be read: {error.strerror}; look at its path, and at who may read it") from error
        except Refused as refused:
            raise Refused(f"{refused}; write the path of one") from refused
        self._budget, self._left, self._calls = budget, budget, CALLS
        self._bounded = True
        self.size = os.fstat(self.whole.fileno()).st_size

    def head(self) -> bytes:
        """How it begins; it is then at its beginning."""
        head = self.whole.read(HEAD)
        self.whole.seek(0)
        return head

    def check(self) -> None:
        """Refused: more was wanted."""
        if self._left < 0 or self._calls < 0:
            raise Refused(f"there are more than {self._budget >> 20} MiB, or {CALLS} pieces, before its pixels; save it anew")

    def lift(self) -> None:
        """From now on as much is read as is wanted. Refused: as :meth:`check`."""
        self.check()
        self._bounded = False

    def read(self, size: int | None = -1) -> bytes:
        """As of any file."""
        if not self._bounded:
            return self.whole.read(size)
        self._calls -= 1
        if self._left < 0 or self._calls < 0:
            return b""
        most = self._left + 1
        content = self.whole.read(most if size is None or size < 0 else min(size, most))
        self._left -= len(content)
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of any file."""
        return self.whole.seek(offset, whence)

    def tell(self) -> int:
        """As of any file."""
        return self.whole.tell()

    def fileno(self) -> int:
        """Where libtiff reads."""
        return self.whole.fileno()

    def close(self) -> None:
        """As of any file."""
        self.whole.close()


_XML = rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--[^>]*-->\s*)?"
_BEGINNINGS: tuple[tuple[bytes, str, Sort], ...] = (
    (rb"\x89PNG\r\n\x1a\n", "PNG", "picture"),
    (rb"\xff\xd8\xff", "JPEG", "picture"),
    (rb"RIFF....WEBP", "WebP", "picture"),
    (rb"GIF8[79]a", "GIF", "picture"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF", "picture"),
    (rb"BM.{4}\0\0\0\0", "BMP", "picture"),
    (rb"....ftyp(?:avif|avis)", "AVIF", "picture"),
    (rb"....ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", "HEIC", "picture"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL", "picture"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000", "picture"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "EPS", "picture"),
    (rb"%PDF-", "PDF", "picture"),
    (rb"8BPS", "PSD", "picture"),
    (rb"\0\0\x01\0[^\0]", "ICO", "picture"),
    (rb"icns", "ICNS", "picture"),
    (rb"DDS ", "DDS", "picture"),
    (rb"v/1\x01", "OpenEXR", "picture"),
    (rb"#\?RADIANCE", "Radiance HDR", "picture"),
    (rb"P[1-7]\s", "PNM", "picture"),
    (rb"P[Ff]\s", "PFM", "picture"),
    (_XML + rb"(?:<!DOCTYPE svg[^>]*>\s*)?<svg", "SVG", "picture"),
    (rb"....(?:ftyp|moov|mdat|wide|free|skip)", "MP4", "video"),
    (rb"\x1aE\xdf\xa3", "Matroska", "video"),
    (rb"RIFF....AVI ", "AVI", "video"),
    (rb"FLV\x01", "FLV", "video"),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "ASF", "video"),
    (rb"\0\0\x01[\xba\xb3]", "MPEG", "video"),
    (rb"YUV4MPEG2 ", "YUV4MPEG2", "video"),
    (rb"\x1f\x07\0[\x3f\xbf]", "DV", "video"),
    (rb"OggS", "Ogg", "video"),
    (rb"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02", "MXF", "other"),
    (rb"nut/multimedia container\0", "NUT", "other"),
    (rb"RIFF....WAVE", "WAV", "sound"),
    (rb"fLaC", "FLAC", "sound"),
    (rb"ID3|\xff[\xf2\xf3\xfa\xfb]", "MP3", "sound"),
    (rb"#EXTM3U", "a playlist, HLS", "other"),
    (rb"ffconcat version", "a list of other files, ffconcat", "other"),
    (_XML + rb"<MPD", "a list of other files, DASH", "other"),
    (rb"v=0\r?\n", "a session description, SDP", "other"),
    (rb";FFMETADATA", "metadata of FFmpeg", "other"),
    (rb"WEBVTT", "subtitles, WebVTT", "other"),
    (rb"version https://git-lfs", "a pointer of Git LFS", "other"),
    (_XML + rb"<(?:!DOCTYPE )?html", "a web page", "other"),
    (rb"PK\x03\x04", "a ZIP archive", "other"),
    (rb"\x1f\x8b", "gzip", "other"),
)
_KINDS = [
    (re.compile(rb"(?:\xef\xbb\xbf)?(?:" + pattern + rb")", re.DOTALL), Kind(name, sort)) for pattern, name, sort in _BEGINNINGS
]
