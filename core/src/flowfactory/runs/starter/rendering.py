"""A config as YAML with a comment to each key: what it is for, from the descriptions of the options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flowfactory.config.wording import allowed, alternatives, is_model, tags
from flowfactory.config.yaml import dump_value

COLUMN, WIDEST = 44, 120
"""Where comments begin, and how far they go beside their key; longer ones stand above it."""


def render(raw: Mapping[str, Any], schema: type[BaseModel], header: Sequence[str]) -> str:
    """The file: the ``header``, each line a comment, then the sections of ``raw``, whose keys ``schema`` describes."""
    lines = [f"# {line}" if line else "" for line in header]
    for key, value in raw.items():
        lines += ["", *_key(key, value, schema.model_fields.get(key), 0)]
    return "\n".join(lines) + "\n"


def commented_options(options: type[BaseModel], but: set[str]) -> Iterator[str]:
    """The other options of a component, as they are by default, each a comment that can be taken away."""
    for key, field in options.model_fields.items():
        if key not in but and not field.is_required():
            told = f"# {key}: {dump_value(field.get_default(call_default_factory=True))}"
            yield _with_comment(told, _cut(field.description or allowed(field), max(len(told), COLUMN) + 5))


def _key(key: str, value: Any, field: FieldInfo | None, depth: int) -> list[str]:
    indent, told = "  " * depth, field.description if field else None
    options = _options(field, value)
    if isinstance(value, Mapping) and value and (depth == 0 or options is not None or _is_labels(field)):
        inner: list[str] = []
        for name, item in value.items():
            inside = options.model_fields.get(name) if options else _item(field)
            inner += _key(name, item, inside, depth + 1)
        if options is not None and depth == 0 and "name" in value:
            inner += [f"{indent}  {line}" for line in commented_options(options, {*value, "name"})]
        return [f"{indent}{key}:", *inner]
    if key == "name" and field is not None:
        told = None
    line = f"{indent}{key}: {dump_value(value)}"
    return [line] if not told else [_with_comment(line, told)] if _fits(line, told) else [f"{indent}# {told}", line]


def _cut(comment: str, column: int) -> str:
    """As much of ``comment`` as there is room for from ``column`` on: `plugins show` tells the rest."""
    room = max(20, WIDEST - column)
    return comment if len(comment) <= room else f"{comment[:room].rpartition(' ')[0].rstrip(' ,;:')} …"


def _with_comment(line: str, comment: str) -> str:
    return f"{line:<{COLUMN}} # {comment}"


def _fits(line: str, comment: str) -> bool:
    return max(len(line), COLUMN) + len(comment) + 3 <= WIDEST


def _options(field: FieldInfo | None, value: Any) -> type[BaseModel] | None:
    """The class of options that ``value`` is of."""
    models = [branch for branch in (alternatives(field.annotation) if field else []) if is_model(branch)]
    name = value.get("name") if isinstance(value, Mapping) else None
    return next((model for model in models if name in tags(model)), models[0] if len(models) == 1 else None)


def _is_labels(field: FieldInfo | None) -> bool:
    return field is not None and _item(field) is not None


def _item(field: FieldInfo | None) -> FieldInfo | None:
    """What stands below each label of a mapping from labels."""
    for branch in alternatives(field.annotation) if field else []:
        arguments = get_args(branch)
        if len(arguments) == 2 and arguments[0] is str:
            return FieldInfo(annotation=arguments[1])
    return None
