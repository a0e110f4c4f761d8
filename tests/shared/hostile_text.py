"""Text that would steer a terminal, and what shows that it did not."""

from __future__ import annotations

import unicodedata

HOSTILE = "\x1b]52;c;aGk=\x07\x1b[2J\x9b31m\r\x08\x7f\u202etxt.exe\u2066\u2028\x85\nerror: all is well\x1b]8;;http://x\x1b\\[red]:warning:"
"""Clipboard, clear, colour, carriage return, backspace, reversed text, links, a line that is not ours, markup of rich."""


def obeyed(text: str) -> list[str]:
    """The characters of ``text`` that a terminal does not show, by Unicode's own classes; line feeds and tabs are ours."""
    directions = ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
    return [
        character
        for character in text
        if (unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") and character not in "\n\t")
        or unicodedata.bidirectional(character) in directions
    ]
