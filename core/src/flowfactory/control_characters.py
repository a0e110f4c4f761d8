r"""Text of others without the characters that a terminal obeys: each is written as its escape, such as ``\x1b``."""

from __future__ import annotations

import re

LONGEST = 4000
"""Characters of a line that is printed; of a longer one the middle is left out, since messages end with what to do."""
# C0 but for the tab, DEL, C1; what breaks lines or turns the direction of text; halves of characters, which nothing can write
_OBEYED = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\r": r"\r"}


def has_controls(text: str) -> bool:
    """Whether anything in ``text`` would be escaped."""
    return _OBEYED.search(text) is not None


def escape_controls(text: str) -> str:
    """``text`` on one line, of any length. All that is printed stays as it is: every script, and emoji."""
    return _OBEYED.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return _SHORT.get(found[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def one_line(text: str) -> str:
    """``text`` as it is printed on one line, at most LONGEST characters."""
    end = LONGEST // 4
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - end]} … {text[-end:]}"
    return escape_controls(text)


def own_lines(text: str) -> str:
    """Lines that are ours, such as those of a resolved config: they stay lines."""
    return "\n".join(map(escape_controls, text.split("\n")))


def foreign_lines(text: str) -> str:
    """Lines that others wrote, such as those of a traceback: none but the first begins where a line of ours does."""
    return "\n  ".join(map(escape_controls, text.rstrip("\n").split("\n")))
