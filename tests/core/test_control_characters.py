"""What terminals obey is escaped, and nothing else is touched."""

from __future__ import annotations

import sys

import pytest
from hostile_text import HOSTILE, obeyed

from flowfactory.control_characters import LONGEST, escape_controls, foreign_lines, has_controls, one_line, own_lines


def test_exactly_what_unicode_says_is_escaped() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    touched = [character for character in everything if escape_controls(character) != character]
    assert touched == sorted({*obeyed(everything), "\n"})
    assert all(has_controls(character) for character in touched)


@pytest.mark.parametrize("text", ["一只猫坐着", "\U0001f469\u200d\U0001f680 ❤\ufe0f", "שלום عليكم", "é\u0301\t~", r"\x1b"])
def test_every_script_and_emoji_stay_as_they_are(text: str) -> None:
    assert one_line(text) == own_lines(text) == foreign_lines(text) == text


def test_escapes_are_written_as_python_and_json_write_them() -> None:
    assert one_line("\x1b[31m\x9b\r\n\u202e\udc80") == r"\x1b[31m\x9b\r\n\u202e\udc80"


def test_our_lines_stay_lines_and_those_of_others_do_not_begin_like_one() -> None:
    assert own_lines("a\r\nb\n") == "a\\r\nb\n"
    assert foreign_lines("Traceback:\nerror: x\n") == "Traceback:\n  error: x"
    for line in (HOSTILE, HOSTILE * 10_000):
        assert "\n" not in one_line(line)


def test_of_a_long_line_both_ends_are_printed() -> None:
    told = one_line(f"config.yaml: {'x' * 10_000_000}: give a number")
    assert len(told) < LONGEST + 10
    assert told.startswith("config.yaml: xxx")
    assert told.endswith("xxx: give a number")
