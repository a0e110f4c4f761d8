"""Rows of a Parquet file, read a few at a time, so that a file of any size holds little memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowfactory.config.wording import written
from flowfactory.data.prompt_rows import LONGEST, TOO_DEEP, TOO_LONG, Mistake, Row, check_value, column_names
from flowfactory.errors import UserError
from flowfactory.untrusted_files import DEEPEST, Refused, open_regular

AT_ONCE = 256
"""Rows that are held at once."""
BUFFER = 2**20  # bytes of a column that are read at once, where pyarrow would hold all of a group of rows


def read_parquet(path: Path) -> Iterator[Row]:
    """A row a prompt; one column is ``prompt``. Lists and structs are what they are in JSON, and null says nothing.

    Mistake: a row that is too large, or holds what no prompt may. UserError: pyarrow is missing, or cannot read the file.
    """
    pyarrow, parquet = _import_pyarrow()
    try:
        with open_regular(path) as handle, parquet.ParquetFile(handle, buffer_size=BUFFER, pre_buffer=False) as file:
            names = _read_columns(pyarrow, path, file.schema_arrow)
            number = 0
            for batch in file.iter_batches(batch_size=AT_ONCE):
                large = batch.nbytes > LONGEST
                for values in batch.rename_columns(names).to_pylist():
                    number += 1
                    yield _make_row(f"row {number}", values, large)
    except Refused as refused:
        raise UserError(f"prompts {path}: it {refused}; give a file") from refused
    except (OSError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"prompts {path}: cannot be read: {error.strerror}") from error
        told = str(error).partition("\n")[0].rstrip(".")[:120]
        raise UserError(f"prompts {path}: cannot be read as Parquet: {told}; write it anew") from error


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("prompts in .parquet need pyarrow: pip install 'flowfactory[parquet]'") from error
    return pyarrow, parquet


def _make_row(place: str, values: dict[str, Any], large: bool) -> Row:
    try:
        check_value(values)
    except ValueError as error:
        raise Mistake(place, str(error)) from error
    if large and len(json.dumps(values, ensure_ascii=False)) > LONGEST:
        raise Mistake(place, TOO_LONG)
    return Row(place, values)


def _read_columns(pyarrow: Any, path: Path, schema: Any) -> list[str]:
    """The names of the columns. UserError: there is none of prompts, two have one name, or one holds what JSON does not."""
    names = column_names(schema.names)
    if "prompt" not in names:
        there = ", ".join(names)[:80]
        raise UserError(f"prompts {path}: there is no column 'prompt', but {there}; rename the one that is meant")
    ((twice, count),) = Counter(names).most_common(1)
    if count > 1:
        raise UserError(f"prompts {path}: two columns are called {written(twice)}; rename one")
    for name, field in zip(names, schema, strict=True):
        if told := _unlike_json(pyarrow, field.type):
            raise UserError(f"prompts {path}: column {written(name)} {told}")
    return names


def _unlike_json(pyarrow: Any, kind: Any, depth: int = 1) -> str | None:
    """What a column of this kind holds that JSON does not, and what to do; None where there is nothing."""
    types = pyarrow.types
    if depth > DEEPEST:
        return f"cannot be read: {TOO_DEEP}"
    if _is_any(kind, types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view):
        return "holds bytes, as datasets writes pictures; save each as a file, and write its path, a text, in their place"
    if types.is_dictionary(kind):
        return _unlike_json(pyarrow, kind.value_type, depth)
    if types.is_struct(kind):
        inner = [kind.field(place).type for place in range(kind.num_fields)]
    elif _is_any(kind, types.is_list, types.is_large_list, types.is_fixed_size_list):
        inner = [kind.value_type]
    elif _is_any(kind, *(getattr(types, f"is_{name}") for name in _AS_IN_JSON)):
        return None
    else:
        return f"holds {str(kind)[:60]}, which JSON does not have; make text or a number of it, or leave the column out"
    return next((told for each in inner if (told := _unlike_json(pyarrow, each, depth + 1))), None)


_AS_IN_JSON = ("string", "large_string", "string_view", "null", "boolean", "integer", "float32", "float64")


def _is_any(kind: Any, *tests: Any) -> bool:
    return any(test(kind) for test in tests)
