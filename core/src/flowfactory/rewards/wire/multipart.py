"""multipart/form-data, RFC 7578."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable

from flowfactory.rewards.wire.schema import Part, WireError

MOST_PARTS = 100_000


def build_multipart(parts: Iterable[Part]) -> tuple[str, bytes]:
    """The Content-Type and the body."""
    boundary = secrets.token_hex(16)
    pieces: list[bytes | memoryview] = []
    for part in parts:
        # a file name is what makes a part a file for many a library on the other side
        name = f'name="{part.name}"' + ("" if part.type == "application/json" else f'; filename="{part.name}"')
        head = f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\nContent-Type: {part.type}\r\n\r\n"
        pieces += [head.encode(), part.content, b"\r\n"]
    return f"multipart/form-data; boundary={boundary}", b"".join([*pieces, f"--{boundary}--\r\n".encode()])


def parse_multipart(content_type: str, body: bytes) -> dict[str, memoryview]:
    """The contents of a multipart body by the names of its parts, not copied. WireError: it is none, or is not whole."""
    found = re.fullmatch(r"multipart/form-data\s*;.*?\bboundary=(\"[^\"]{1,70}\"|[^\s;\"]{1,70}).*", content_type, re.I | re.S)
    if not found:
        raise WireError(f"Content-Type is {content_type[:100]!r}; expected multipart/form-data with its boundary")
    boundary = b"--" + found[1].strip('"').encode()
    view = memoryview(body)
    parts: dict[str, memoryview] = {}
    if not body.startswith(boundary):
        raise WireError("the body does not begin with its boundary")
    place = len(boundary)
    while not body.startswith(b"--", place):
        if not body.startswith(b"\r\n", place):
            raise WireError("a boundary is followed by neither a line nor the end")
        end = body.find(b"\r\n" + boundary, place + 2)
        if end < 0:
            raise WireError("the body ends within a part")
        blank = body.find(b"\r\n\r\n", place, min(end, place + 8192))
        if blank < 0:
            raise WireError("a part has no blank line after its headers")
        name = _part_name(body[place:blank])
        if name in parts:
            raise WireError(f"there are two parts {name!r}")
        if len(parts) == MOST_PARTS:
            raise WireError(f"there are more than {MOST_PARTS} parts; send fewer samples in a request")
        parts[name] = view[blank + 4 : end]
        place = end + 2 + len(boundary)
    return parts


def _part_name(head: bytes) -> str:
    for line in head.decode("latin-1").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            found = re.search(r';\s*name=("([^"]*)"|[^\s;"]+)', value, re.I)
            if found:
                return found[2] if found[2] is not None else found[1]
    raise WireError("a part has no name in its Content-Disposition")
