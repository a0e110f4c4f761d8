"""Values are those of YAML 1.2, and what is wrong is named where it begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flowfactory.config import loading
from flowfactory.config.overrides import apply_override
from flowfactory.config.yaml import Dumper, dump, parse_yaml
from flowfactory.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0100", 100),
        ("-010", -10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("OFF", "OFF"),
        ("true", True),
        ("FALSE", False),
        ("2026-01-01", "2026-01-01"),
        ("2026-01-01 10:00:00", "2026-01-01 10:00:00"),
        ("=", "="),
        ("~", None),
        ("Null", None),
        ("", None),
        ("+.INF", math.inf),
        ("{yes: 1, on: 2}", {"yes": 1, "on": 2}),
        ("!!str 0100", "0100"),
    ],
)
def test_a_value_is_what_yaml_1_2_says(text: str, value: Any) -> None:
    read = parse_yaml(text, "here")
    assert (type(read), read) == (type(value), value)
    if text:
        assert apply_override({}, f"a={text}") == {"a": value}


@pytest.mark.parametrize(
    "text", ["0100", "1:30", "no", "1e-4", "0o17", "2026-01-01", "1_000", "=", "<<", "", "null", "~", "x: y"]
)
def test_text_is_written_so_that_every_reader_takes_it_for_text(text: str) -> None:
    written = yaml.dump({"a": text}, Dumper=Dumper)
    assert parse_yaml(written, "here") == yaml.safe_load(written) == {"a": text}


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()))
def test_what_is_written_is_read_back(value: Any) -> None:
    assert parse_yaml(yaml.dump([value], Dumper=Dumper), "here") == [value]


def test_a_text_that_looks_like_a_number_survives_the_run_directory(config_file: Callable[..., Path], tmp_path: Path) -> None:
    made = loading.load(config_file(), overrides=["prompts.negative='1e-4'"])
    (tmp_path / "again.yaml").write_text(dump(made))
    assert loading.load(tmp_path / "again.yaml").prompts.negative == "1e-4"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 'foo\nc: 1\n", "line 2: the quote ' that opens here is never closed"),
        ('a: 1\nb: "foo\nc: 1\n', 'line 2: the quote " that opens here is never closed'),
        (
            "a: 1\nb: 'foo\nc: 2\nd: 'bar'\n",
            "line 2: the quote ' that opens here is closed by the one in line 4, where the text goes on; "
            "close it where it should end",
        ),
        ("a: 1\nb: 'don't draw'\n", "line 2: text goes on behind the closing quote '; write '' for a ' within it"),
        ('b: "6" pipe"\n', 'line 1: text goes on behind the closing quote "; write \\" for a " within it'),
        (
            "a: [1, 2\nb: 3\nc: 4\n",
            "line 1: the [ that opens here is not closed before line 2: expected ',' or ']', but got ':'",
        ),
        (
            "x:\n  a: {b: 1\n  c: 2\n",
            "line 2: the { that opens here is not closed before line 3: expected ',' or '}', but got ':'",
        ),
        ("a: [1", "line 1: the [ that opens here is not closed: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n\tb: 2", "line 2: a tab stands where YAML takes spaces alone; write spaces"),
        ('a: "C:\\Users"', "line 1: \\ begins an escape in double quotes; write the text in single quotes"),
        ('a: "\\d"', "line 1: \\ begins an escape in double quotes; write the text in single quotes"),
        ("a: @b", "line 1: a value cannot begin with this character; write it in quotes"),
        ("a: *.py", "line 1: * begins an alias; write the text in quotes"),
        ("a: 1\n---\nb: 2", "line 2: a second document begins; write one"),
        ("a: &x [*x]", "line 1: this holds itself; write it out"),
        ("a: {b: 1, b: 2}", "line 1: key 'b' stands twice"),
        ("{<<: {a: 1}, <<: {b: 1}}", "line 1: key '<<' stands twice"),
        ("a: 1\nb: !!binary aGk=", "line 2: the tag '!!binary' is not read; write the value without it"),
        ("a: !!python/name:os.system", "line 1: the tag '!!python/name:os.system' is not read; write the value without it"),
        ("a: !!int 'x'", "line 1: 'x' cannot be read as !!int"),
        ("a: !!bool x", "line 1: 'x' cannot be read as !!bool"),
        ("a: !!map x", "line 1: 'x' cannot be read as !!map"),
        ("a: " + "9" * 5000, f"line 1: '{'9' * 40}' cannot be read as !!int"),
        ("a: 1\nb: \x00", "line 2: unacceptable character #x0000: special characters are not allowed"),
    ],
)
def test_a_mistake_is_named_where_it_begins(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_yaml(text, "here")
    assert str(refused.value) == f"here {sentence}"
    if "\n" not in text:
        with pytest.raises(UserError) as refused:
            apply_override({}, f"a={text}")
        assert str(refused.value).startswith("--set a line 1: ")


def test_what_is_nested_without_end_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^here: it is nested too deeply; no config needs that$"):
        parse_yaml("[" * 5000, "here")
