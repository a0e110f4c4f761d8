"""What a file of prompts says of one prompt, where it says so, and what no prompt may hold."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple

from flowfactory.untrusted_files import DEEPEST

LONGEST = 2**20
"""Characters of a prompt with all that it brings. No more of a file is looked at at once, whatever its size."""
KEYS = ("prompt", "negative_prompt", "image", "images", "video", "audio", "target", "chosen", "rejected", "rewards")
"""Names of columns that mean something, which may be written in any case."""


class Row(NamedTuple):
    """A text or an object, and its place in the file, such as ``line 3``."""

    place: str
    item: Any


class Mistake(ValueError):
    """What is wrong at a ``place`` of a file, such as ``line 3``."""

    def __init__(self, place: str, sentence: str) -> None:
        super().__init__(sentence)
        self.place = place


def check_value(value: Any, depth: int = 0) -> None:
    """ValueError: something in it cannot go on to where prompts go."""
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError(r"a text in it holds \u0000, which is no character; leave it out")
        if not value.isascii() and (half := _HALF.search(value)):
            raise ValueError(rf"a text in it holds \u{ord(half[0]):04x}, half a character; write both halves, or neither")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a number in it is {json.dumps(value)}, and each should be finite; write null, or leave it out")
    elif isinstance(value, dict | list):
        if depth == DEEPEST:
            raise ValueError(TOO_DEEP)
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            check_value(item, depth + 1)


def column_names(names: list[str]) -> list[str]:
    """The names of a table's columns, those that mean something as they are written in JSON."""
    stripped = [name.strip() for name in names]
    return [name.lower() if name.lower() in KEYS else name for name in stripped]


TOO_DEEP = f"it is nested more than {DEEPEST} deep; no prompt needs that"
TOO_LONG = f"it is longer than {LONGEST / 2**20:g} Mi characters; no prompt needs that"
_HALF = re.compile(r"[\ud800-\udfff]")
