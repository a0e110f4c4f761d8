"""Prompt files as rows: what each kind of file says of a prompt, and the line that says it."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from flowfactory.config.text_files import read_pieces
from flowfactory.config.wording import written
from flowfactory.data.captioned_pictures import read_captioned_pictures
from flowfactory.data.parquet_rows import read_parquet
from flowfactory.data.prompt_rows import LONGEST, TOO_DEEP, TOO_LONG, Mistake, Row, check_value, column_names
from flowfactory.errors import UserError

KINDS = (
    ".txt (a prompt a line), .jsonl or .ndjson (an object a line), .json (a list), .csv or .tsv (a header with 'prompt'), "
    ".parquet (a column 'prompt'), or a folder of pictures with .txt captions"
)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of the file, read as its suffix says, or of a folder of pictures with captions.

    UserError: one line with the file and the place in it: not UTF-8, another kind of file, or not what its suffix says.
    """
    try:
        yield from _choose_reader(path)(path)
    except Mistake as mistake:
        raise UserError(f"prompts {path} {mistake.place}: {mistake}") from mistake


def _choose_reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    """What reads the file. UserError: nothing does."""
    suffix = path.suffix.lower()
    if os.path.isdir(path):
        return read_captioned_pictures
    if suffix == ".parquet":
        return read_parquet
    if reader := _READERS.get(suffix):
        return lambda file: reader(read_pieces(file, f"prompts {file}"))
    if suffix == ".tar":
        raise UserError(f"prompts {path}: archives, as WebDataset writes them, are not read; unpack it, and name the folder")
    kind = f"files of the kind {path.suffix!r}" if path.suffix else "files without a suffix"
    raise UserError(f"prompts {path}: {kind} are not read; write {KINDS}")


def _mistake(line: int, sentence: str) -> Mistake:
    """That something is wrong with the row that begins in ``line``."""
    return Mistake(f"line {line}", sentence)


def _split(pieces: Iterator[str]) -> Iterator[str]:
    """The lines."""
    number, rest = 1, ""
    for piece in pieces:
        *lines, rest = (rest + piece).split("\n")  # splitlines() splits at U+2028 and others too
        for line in lines:
            _check_length(line, number)
            yield line
            number += 1
        _check_length(rest, number)
    yield rest


def _check_length(text: str, line: int) -> None:
    if len(text) > LONGEST:
        raise _mistake(line, TOO_LONG)


def _read_lines(pieces: Iterator[str]) -> Iterator[Row]:
    lines = _split(pieces)
    begun = list(_take(lines, LONGEST))
    if (text := "\n".join(begun)).lstrip().startswith(("[", "{")) and _is_json(text):
        raise _mistake(1, "this is JSON, which is read from a file that ends in .json; rename it")
    first = True
    for number, line in enumerate(chain(begun, lines), 1):
        words = line.strip()
        if words.startswith("{") and words.endswith("}") and _is_json(words):
            raise _mistake(number, "this is a JSON object, which is read from a file that ends in .jsonl; rename it")
        if _LIKE_JSON.match(words):
            raise _mistake(
                number, f"{words[:30]!r} looks like JSON, and not all here is; mend it, and name the file .jsonl or .json"
            )
        if first and words and _is_header(words):
            raise _mistake(
                number, "this is the header of a table, which is read from a file that ends in .csv or .tsv; rename it"
            )
        if words:
            first = False
            yield Row(f"line {number}", words)


def _take(texts: Iterator[str], count: int) -> Iterator[str]:
    """The first of ``texts``, until they are more than ``count`` characters."""
    for text in texts:
        yield text
        count -= len(text) + 1
        if count < 0:
            return


def _is_header(line: str) -> bool:
    """Whether it is names of columns, and one is ``prompt``."""
    names = [name.strip(' "') for name in re.split(r"[,;\t]", line)]
    return "prompt" in map(str.lower, names) and all(re.fullmatch(r"\w*", name) for name in names)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _read_json_lines(pieces: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(_split(pieces), 1):
        if line.strip():
            start = _skip(line, 0)
            if line.startswith("[", start):  # most likely the first line of a list
                raise _mistake(number, "expected an object with a 'prompt'; a list is read from a file that ends in .json")
            item, end = _decode(line, start, number)
            if end < len(line):
                raise _mistake(number, f"no JSON: something stands behind the object, from character {end + 1} on")
            yield Row(f"line {number}", item)


class _Window:
    """What is left of a text from ``place`` on: more than LONGEST characters of it, if there are so many."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self.text, self.place = "", 0
        self.before = 0  # characters of the text's first line that are no longer at hand
        self._line, self._counted = 1, 0

    def line(self) -> int:
        """The one of ``place``, counted from 1."""
        self._line += self.text.count("\n", self._counted, self.place)
        self._counted = self.place
        return self._line

    def peek(self) -> str:
        """The character here, white space passed over; "" at the end."""
        while True:
            self.place = _skip(self.text, self.place)
            if len(self.text) - self.place > LONGEST or not self._read_on():
                return self.text[self.place : self.place + 1]

    def _read_on(self) -> bool:
        """False where there is no more."""
        pieces = list(_take(self._pieces, 2 * LONGEST))
        if not pieces:
            return False
        self.line()
        behind = self.text.rfind("\n", 0, self.place)
        self.before = self.before + self.place if behind < 0 else self.place - behind - 1
        self.text, self.place, self._counted = "".join([self.text[self.place :], *pieces]), 0, 0
        return True


def _read_json(pieces: Iterator[str]) -> Iterator[Row]:
    """The items of a list; or objects one after another, since many a file of JSON lines ends in .json."""
    window = _Window(pieces)
    listed = window.peek() == "["
    window.place += listed
    while (sign := window.peek()) and not (listed and sign == "]"):
        line = window.line()
        item, window.place = _decode(window.text, window.place, line, window.before)
        yield Row(f"line {line}", item)
        if listed and (sign := window.peek()) == ",":
            window.place += 1
        elif listed and sign != "]":
            break
    line = window.line()
    closed = window.peek() == "]"
    window.place += listed and closed
    if listed and (not closed or window.peek()):
        raise _mistake(line, "no JSON: the list should go on with ',' or end with ']' here")


def _skip(text: str, place: int) -> int:
    """The first place from ``place`` on that is no white space."""
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _decode(text: str, place: int, line: int, before: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at ``place``, and where what follows it begins.

    before: characters of the first line that ``text`` lacks.
    """
    try:
        item, end = _DECODER.raw_decode(text, place)
        check_value(item)
    except json.JSONDecodeError as error:
        if (len(text) if error.msg.startswith("Unterminated string") else error.pos) - place > LONGEST:
            raise _mistake(line, TOO_LONG) from error
        character = error.colno + (before if error.lineno == 1 else 0)
        raise _mistake(line + text.count("\n", place, error.pos), f"no JSON: {error.msg} at character {character}") from error
    except ValueError as error:
        raise _mistake(line, str(error).partition("; use sys.")[0]) from error  # of a number with thousands of digits
    except RecursionError as error:
        raise _mistake(line, TOO_DEEP) from error
    if end - place > LONGEST:
        raise _mistake(line, TOO_LONG)
    return item, _skip(text, end)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {written(twice)} stands twice")
    return found


_LIKE_JSON = re.compile(
    r"""[\[\]],?$                        # a bracket alone, of a list over several lines
    | \[?\s*\{\s*["'][^"']*["']\s*:     # {"prompt": … or, as Python has it, {'prompt': …
    | ["']prompt["']\s*:                # of an object over several lines
    | \[\s*["'].*["']\s*[,\]]*$         # ["a cat", … """,
    re.VERBOSE,
)
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _read_table(pieces: Iterator[str], delimiter: str) -> Iterator[Row]:
    """A row a prompt, under a header that has ``prompt``. Cells are text; an empty one says nothing."""
    size = 0

    def feed() -> Iterator[str]:
        nonlocal size
        for line in _split(pieces):
            size += len(line)
            if size > LONGEST:
                raise _mistake(following, TOO_LONG)
            yield f"{line}\n"

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    told = {",": "','", "\t": "a tab"}[delimiter]
    header: list[str] | None = None
    line = following = 1
    try:
        for cells in reader:
            line, following, size = following, reader.line_num + 1, 0
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _read_header(cells, line, told)
                continue
            if len(cells) != len(header):
                remedy = "write text with {} in quotes" if len(cells) > len(header) else "put {} between all, empty ones too"
                raise _mistake(line, f"{len(cells)} cells under a header of {len(header)}; {remedy.format(told)}")
            found = {name: cell for name, cell in zip(header, cells, strict=True) if name and cell.strip()}
            yield Row(f"line {line}", {"prompt": "", **found})
    except csv.Error as error:
        if "field limit" in str(error):
            told = f"a cell has more than {csv.field_size_limit():,} characters; end a text in quotes with its quote"
            raise _mistake(following, f"{told}, or write a .jsonl file") from error
        problem = str(error).replace("'\t'", told)
        raise _mistake(
            following, f"{problem}; a text in quotes ends with its quote, and a quote within it is written twice"
        ) from error


def _read_header(cells: Sequence[str], line: int, delimiter: str) -> list[str]:
    """The names of the columns; those that mean something may be written in any case."""
    names = column_names(list(cells))
    if "prompt" not in names:
        told = ", ".join(names)[:80]
        raise _mistake(line, f"the header, {told!r}, has no 'prompt'; write one, with {delimiter} between columns")
    counts = Counter(names)
    for name in names:
        if name and counts[name] > 1:
            raise _mistake(line, f"two columns are called {written(name)}; rename one")
        if name in ("images", "rewards"):
            raise _mistake(line, f"{name!r} is a list, which no cell holds; write a .jsonl file")
    return names


_READERS: Mapping[str, Callable[[Iterator[str]], Iterator[Row]]] = {
    ".txt": _read_lines,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": partial(_read_table, delimiter=","),
    ".tsv": partial(_read_table, delimiter="\t"),
}
