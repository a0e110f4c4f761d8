"""Values are those of YAML 1.2, and what is wrong is named where it begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile_text import obeyed
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


STEERING = st.text(alphabet="\x1b\x9b\u202e\u2028\x85\r\n\t 猫'\":#-a")
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), STEERING)


@given(st.one_of(VALUES, st.dictionaries(STEERING, STEERING)), st.booleans())
def test_what_is_written_is_read_back_and_steers_no_terminal(value: Any, allow_unicode: bool) -> None:
    text = yaml.dump([value], Dumper=Dumper, allow_unicode=allow_unicode)
    assert obeyed(text) == []
    assert parse_yaml(text, "here") == [value]


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
        ("a: x\ty", "line 1: a tab stands where YAML takes spaces alone; write spaces"),
        ("a:\n  - b\n\t- c", "line 3: a tab stands where YAML takes spaces alone; write spaces"),
        ("a: 1\nseed:3\n\n# c\nb: 4", "line 2: 'seed:3' is no 'key: value'; did you mean 'seed: 3'?"),
        ("seed:3\na: 1", "line 1: 'seed:3' is no 'key: value'; did you mean 'seed: 3'?"),
        ("seed:3\n\n# c\na: 1", "line 1: 'seed:3' is no 'key: value'; did you mean 'seed: 3'?"),
        ("x:\n  # c\n  seed:3\n\n  # c\n  b: 1", "line 3: 'seed:3' is no 'key: value'; did you mean 'seed: 3'?"),
        ("a: 1\nseed 3\nb: 2", "line 2: 'seed 3' is no 'key: value'; did you mean 'seed: 3'?"),
        ("a: 1\nseed=3", "line 2: 'seed=3' is no 'key: value'; did you mean 'seed: 3'?"),
        ("a: 1\nword\nb: 2", "line 2: 'word' is no 'key: value'; write one, or leave it out"),
        ("a: 1\n<<<<<<< HEAD\nb: 1\n=======\nb: 2\n>>>>>>> x", "line 2: this is what git leaves of a conflict; settle it"),
        ("<<<<<<< HEAD\nb: 1\n=======\nb: 2\n>>>>>>> x", "line 1: this is what git leaves of a conflict; settle it"),
        ("x:\n  a: 1\n seed: 3", "line 3: this is not below what it belongs to; align it"),
        ("a: 1\n- b", "line 2: an item of a list stands among keys; indent it below the key that it belongs to"),
        ("- b\na: 1", "line 2: a key stands among the items of a list; align it with other keys"),
        ("a: [1, 2] b", "line 1: text goes on behind a value that has ended; put all of it in quotes"),
        (
            "a: 1\n b: 2",
            "line 2: a second ': ' in one value, or lines that are not below each other; use quotes, or align",
        ),
        ("a: {rank:64}", "line 1: 'rank:64' is one word; did you mean 'rank: 64'?"),
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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("iterations:\t3\nb: 1", {"iterations": 3, "b": 1}),
        ("a: 3\t# c\nb: 4\t\n\t\n\t# c\n", {"a": 3, "b": 4}),
        ('{\n\t"a": 1,\n\t"b": [\n\t\t1,\t"x"\n\t]\n}\n', {"a": 1, "b": [1, "x"]}),
        ("-\t1\n-\tb: 2", [1, {"b": 2}]),
        ("a: 'x'\t\nb:\t# c\n  c: 1", {"a": "x", "b": {"c": 1}}),
        ('a: "x\ty"\nb: |\n  x\ty\n  \tz\n', {"a": "x\ty", "b": "x\ty\n\tz\n"}),
    ],
)
def test_a_tab_that_yaml_takes_is_taken(text: str, value: Any) -> None:
    assert parse_yaml(text, "here") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{http://a.org/b: 1}", {"http://a.org/b": 1}),
        ("{'a:b': }", {"a:b": None}),
        ("{a: , b: }", {"a": None, "b": None}),
        ("a: b\n  seed:3\nc: 1", {"a": "b seed:3", "c": 1}),
        ("a: |\n  =======\n  <<<<<<< x\n", {"a": "=======\n<<<<<<< x\n"}),
    ],
)
def test_a_colon_within_a_word_is_one_of_its_letters(text: str, value: Any) -> None:
    assert parse_yaml(text, "here") == value


def test_what_is_nested_without_end_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^here: it is nested more than 32 deep; no config needs that$"):
        parse_yaml("[" * 5000, "here")
