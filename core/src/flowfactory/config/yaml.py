"""YAML as configs have it: the values of YAML 1.2 and no key twice, read and written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import yaml
from pydantic import BaseModel

from flowfactory.config.wording import written
from flowfactory.control_characters import has_controls
from flowfactory.errors import UserError
from flowfactory.untrusted_files import DEEPEST, Refused

MOST = 10_000
"""Values in a text, those that aliases stand for counted where they stand."""
LONGEST_NUMBER = 1000
"""Characters of a number."""
LONGEST_PROBLEM = 300
"""Characters of what is said of a mistake."""

_TAG = "tag:yaml.org,2002:"
# the core schema of YAML 1.2 (section 10.3.2), and the merge key of 1.1; with the characters that a value may begin with
_PLAIN_VALUES = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", "<<", "<"),
)


@dataclass
class _Extent:
    """How many values a node holds, itself counted, and how deep, with its aliases written out."""

    values: int = 1
    depth: int = 0


class BoundedLoader(yaml.SafeLoader):
    """Refused: there are more than MOST values, or deeper than DEEPEST, which is found out before aliases are written out."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._extents: dict[Any, _Extent] = {}
        self._open: list[_Extent] = []

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias = self.check_event(yaml.AliasEvent)
        self._open.append(_Extent())
        self._check_extent()
        node = super().compose_node(parent, index)
        extent = self._open.pop()
        if alias:
            if node not in self._extents:
                raise _error("this holds itself; write it out", node)
            extent = self._extents[node]
        self._extents[node] = extent
        if self._open:
            self._open[-1].values += extent.values
            self._open[-1].depth = max(self._open[-1].depth, extent.depth + 1)
            self._check_extent()
        return node

    def _check_extent(self) -> None:
        if len(self._open) + self._open[-1].depth > DEEPEST + 1:
            raise Refused(f"is nested more than {DEEPEST} deep; no config needs that")
        if self._open[-1].values > MOST:
            raise Refused(f"holds more than {MOST:,} values, aliases written out; no config needs that")


class Loader(BoundedLoader):
    """The values of YAML 1.2: ``1e-4`` and ``0o17`` are numbers, ``0100`` is a hundred; ``1:30``, ``on`` and dates are text.

    A repeated key is an error rather than the last one's win.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012  none of YAML 1.1's
    yaml_constructors = {}  # noqa: RUF012

    def construct_document(self, node: Any) -> Any:
        return self.construct_object(node, deep=True)  # in one go, which refuses what holds itself

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError) as error:  # of a tag that does not fit, or thousands of digits
            raise _error(f"{str(node.value)[:40]!r} cannot be read as {node.tag.replace(_TAG, '!!')}", node) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, value_node in node.value:
            _check_colon(key_node, value_node)
            key = "<<" if key_node.tag == f"{_TAG}merge" else self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise _error(f"{written(key)} cannot be a key; write text with braces in quotes", key_node)
            if key in seen:
                raise _error(f"key {written(key)} stands twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def scan_to_next_token(self) -> None:
        super().scan_to_next_token()
        while self.peek() == "\t":
            length = 1
            while self.peek(length) in (" ", "\t"):
                length += 1
            if not self._tab_separates(self.peek(length)):
                break
            self.forward(length)
            super().scan_to_next_token()

    def _tab_separates(self, after: str) -> bool:
        """Whether the tab here stands between tokens, where YAML takes it as PyYAML does not, and is no indentation.

        ``after`` is what comes after it and other blanks.
        """
        before = self.buffer[self.pointer - self.column : self.pointer].rstrip(" \t")
        begins = bool(self.flow_level) and not before
        return begins or after in "\r\n\0#:,]}" or before.endswith((":", "-", ",", "[", "{"))

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        if len(text) > LONGEST_NUMBER:
            raise ValueError
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def construct_yaml_float(self, node: Any) -> float:
        return float(re.sub(r"\.(?=inf|nan)", "", self.construct_scalar(node).lower()))

    def construct_undefined(self, node: Any) -> Any:
        raise _error(f"the tag {node.tag.replace(_TAG, '!!')[:40]!r} is not read; write the value without it", node)


class Dumper(yaml.SafeDumper):
    """Text that YAML 1.1 or 1.2 would read as something else comes in quotes, and what terminals obey as escapes in them."""

    def choose_scalar_style(self) -> Any:
        return '"' if has_controls(cast(Any, self.event).value.replace("\n", "")) else super().choose_scalar_style()

    def write_double_quoted(self, text: str, split: bool = True) -> None:
        asked = self.allow_unicode
        self.allow_unicode = asked and not has_controls(text.replace("\n", ""))
        super().write_double_quoted(text, split)
        self.allow_unicode = asked


for _kind, _pattern, _first in _PLAIN_VALUES:
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$"), [*_first, ""])
for _kind in ("null", "bool", "int", "float", "str", "seq", "map"):
    Loader.add_constructor(_TAG + _kind, getattr(Loader, f"construct_yaml_{_kind}"))
Loader.add_constructor(None, Loader.construct_undefined)


def _check_colon(key: Any, value: Any) -> None:
    """ConstructorError: a key such as ``rank:64``, which is one word that nothing is said of."""
    if key.tag == f"{_TAG}str" and key.style is None and value.value == "" and (found := _NO_SPACE.fullmatch(key.value)):
        raise _error(f"{key.value[:40]!r} is one word; did you mean '{found[1]}: {found[2][:40]}'?", key)


_NO_SPACE = re.compile(r"([A-Za-z_][\w.-]*):(\S+)")


def _error(problem: str, node: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def parse_yaml(text: str, source: str) -> Any:
    """The value. UserError: not YAML, with file and line."""
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        line, problem = _explain(error, text)
        raise UserError(f"{source} line {line}: {problem[:LONGEST_PROBLEM]}") from error
    except Refused as error:
        raise UserError(f"{source}: it {error}") from error


def parse_head(text: str) -> Any:
    """The value as YAML 1.1 has it, where others wrote it and nothing but a few keys are wanted; None of what is none."""
    try:
        return yaml.load(text, Loader=BoundedLoader)
    except (yaml.YAMLError, Refused, ValueError, TypeError, LookupError):  # of a tag that does not fit, among others
        return None


def _explain(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """The line to look at, counted from 1, and what is wrong there."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        position = getattr(error, "position", 0)
        return text.count("\n", 0, position) + 1, str(error).splitlines()[0]
    mark, context, problem = error.problem_mark, error.context or "", error.problem or "no YAML"
    if conflict := _CONFLICT.search(text):
        return text.count("\n", 0, conflict.start()) + 1, "this is what git leaves of a conflict; settle it"
    if error.context_mark and context == "while scanning a quoted scalar" and "unexpected" in problem:
        return error.context_mark.line + 1, f"the quote {text[error.context_mark.index]} that opens here is never closed"
    if quoted := _quote_before(mark, text):
        start, end = quoted
        quote = text[start.index]
        if start.line != end.line:
            return start.line + 1, (
                f"the quote {quote} that opens here is closed by the one in line {end.line + 1}, where the text goes on; "
                "close it where it should end"
            )
        twice = "write '' for a ' within it" if quote == "'" else 'write \\" for a " within it'
        return mark.line + 1, f"text goes on behind the closing quote {quote}; {twice}"
    if pair := _no_pair(error, text):
        return pair
    if error.context_mark and context in ("while parsing a flow sequence", "while parsing a flow mapping"):
        opened, bracket = error.context_mark.line, text[error.context_mark.index]
        until = f" before line {mark.line + 1}" if mark.line > opened else ""
        return opened + 1, f"the {bracket} that opens here is not closed{until}: {problem}"
    return mark.line + 1, next((told for sign, told in _PLAINER if sign in f"{context}: {problem}"), problem)


_PLAINER = (
    (r"'\t'", "a tab stands where YAML takes spaces alone; write spaces"),
    ("double-quoted scalar", r"\ begins an escape in double quotes; write the text in single quotes"),
    ("cannot start any token", "a value cannot begin with this character; write it in quotes"),
    ("while scanning an alias", "* begins an alias; write the text in quotes"),
    (
        "mapping values are not allowed",
        "a second ': ' in one value, or lines that are not below each other; use quotes, or align",
    ),
    ("found another document", "a second document begins; write one"),
    ("but found '<block mapping start>'", "this is not below what it belongs to; align it"),
    ("but found '-'", "an item of a list stands among keys; indent it below the key that it belongs to"),
    ("but found '?'", "a key stands among the items of a list; align it with other keys"),
    ("but found '<scalar>'", "text goes on behind a value that has ended; put all of it in quotes"),
)
"""What a part of PyYAML's sentence stands for, in plainer words."""


def _no_pair(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str] | None:
    """The line that should be a key with its value and is a text, of which PyYAML complains where the next one begins."""
    lines, mark = text.split("\n"), cast(yaml.Mark, error.problem_mark)
    if error.context == "while scanning a simple key" and error.context_mark:
        number = error.context_mark.line
    elif re.search("mapping values are not allowed|but found '<block mapping start>'", error.problem or ""):
        number = next((n for n in reversed(range(mark.line)) if lines[n].split("#")[0].strip()), mark.line)
        if re.search(r":(\s|$)", lines[number]) or _indentation(lines[number]) != _indentation(lines[mark.line]):
            return None
    else:
        return None
    line = lines[number].strip()
    pair = re.fullmatch(r"([A-Za-z_][\w.-]*)\s*[:=\s]\s*(\S.*)", line)
    meant = f"; did you mean '{pair[1]}: {pair[2][:40]}'?" if pair else "; write one, or leave it out"
    return number + 1, f"{line[:40]!r} is no 'key: value'{meant}"


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


_CONFLICT = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)


def _quote_before(mark: yaml.Mark, text: str) -> tuple[yaml.Mark, yaml.Mark] | None:
    """Where the quoted text begins and ends that the mistake at ``mark`` stands behind, on the line that it ends in."""
    last = None
    try:
        for token in yaml.scan(text, Loader=Loader):
            if token.start_mark.index >= mark.index:
                break
            last = token
    except yaml.YAMLError:
        pass
    if not isinstance(last, yaml.ScalarToken) or last.style not in ("'", '"') or last.end_mark.line != mark.line:
        return None
    return last.start_mark, last.end_mark


def dump(config: BaseModel) -> str:
    """The resolved config as YAML that :func:`flowfactory.config.loading.load` reads back to the same."""
    return dump_values(config.model_dump(mode="json"))


def dump_values(values: Mapping[str, Any]) -> str:
    """``values``, of the types of JSON, as YAML, in block style."""
    return yaml.dump(_put_name_first(dict(values)), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def dump_value(value: Any) -> str:
    """``value`` as YAML has it on one line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    text = yaml.dump(
        _put_name_first(_plain(value)), Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10**9
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any) -> Any:
    """``value`` with lists in place of tuples, and text in place of paths."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _put_name_first(value: Any) -> Any:
    if isinstance(value, dict):
        first = [key for key in ("name", "weight") if key in value]
        return {key: _put_name_first(value[key]) for key in [*first, *(key for key in value if key not in first)]}
    if isinstance(value, list):
        return [_put_name_first(item) for item in value]
    return value
