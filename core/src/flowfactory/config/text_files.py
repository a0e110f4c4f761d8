"""Text that users write, in UTF-8."""

from __future__ import annotations

from pathlib import Path

from flowfactory.errors import UserError


def read_text(path: Path, source: str) -> str:
    """The text with "\\n" at the end of each line, without a byte order mark.

    UserError: it cannot be read, or is no text in UTF-8; begins with ``source``, and names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from error
    return decode(content, source)


def decode(content: bytes, source: str) -> str:
    """The text that a file holds, as :func:`read_text` gives it. UserError: it is no text in UTF-8."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{source}: this is UTF-16 or UTF-32; save it as UTF-8")
    if (place := content.find(b"\0")) >= 0:
        line = content.count(b"\n", 0, place) + 1
        raise UserError(f"{source} line {line}: it holds NUL, as UTF-16 and files that are no text do; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source} line {line}: this is no UTF-8; save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
