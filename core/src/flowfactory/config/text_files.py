"""Text that users write, in UTF-8."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from io import IncrementalNewlineDecoder
from itertools import chain
from pathlib import Path

from flowfactory.errors import UserError
from flowfactory.untrusted_files import Refused, open_regular, read_bytes

LARGEST = 2**18
"""Bytes of a config: a hundred times what is usual."""
PIECE = 2**18
"""Bytes that are read at once of a text that may be of any size."""


def read_text(path: Path, source: str) -> str:
    """The text of a config, with "\\n" at the end of each line, without a byte order mark.

    UserError: it cannot be read, is larger than LARGEST, or is no text in UTF-8; begins with ``source``, and names the line.
    """
    try:
        content = read_bytes(path, LARGEST)
    except OSError as error:
        raise _unreadable(source, error) from error
    except Refused as refused:
        raise UserError(f"{source}: it {refused}; give a config") from refused
    return decode(content, source)


def decode(content: bytes, source: str) -> str:
    """The text that a file holds, as :func:`read_text` gives it. UserError: it is no text in UTF-8."""
    return "".join(_decode([content], source))


def read_pieces(path: Path, source: str) -> Iterator[str]:
    """A text of any size piece by piece. UserError: as :func:`read_text`, when the piece is read that it is about."""
    try:
        with open_regular(path) as file:
            yield from _decode(iter(lambda: file.read(PIECE), b""), source)
    except OSError as error:
        raise _unreadable(source, error) from error
    except Refused as refused:
        raise UserError(f"{source}: it {refused}; give a file of text") from refused


def _unreadable(source: str, error: OSError) -> UserError:
    return UserError(f"{source}: cannot be read: {error.strerror}")


def _decode(pieces: Iterable[bytes], source: str) -> Iterator[str]:
    decoder = IncrementalNewlineDecoder(getincrementaldecoder("utf-8-sig")(), translate=True)
    line = 1
    for number, piece in enumerate(chain(pieces, [b""])):
        if number == 0 and piece.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"{source}: this is UTF-16 or UTF-32; save it as UTF-8")
        if (place := piece.find(b"\0")) >= 0:
            line += piece.count(b"\n", 0, place)
            raise UserError(f"{source} line {line}: it holds NUL, as UTF-16 and files that are no text do; save it as UTF-8")
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            raise UserError(f"{source} line {line}: this is no UTF-8; save it as UTF-8") from error
        line += text.count("\n")
        yield text
