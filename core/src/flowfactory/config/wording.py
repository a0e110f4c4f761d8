"""Values as a user writes them in YAML, and in words what a key takes."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flowfactory.suggestions import join_or

LONGEST = 100
"""Characters of a value that a message shows."""


def written(value: Any) -> str:
    """``value`` as YAML has it on one line: null, true, [1, 2], {a: b}; text in quotes."""
    if isinstance(value, str):
        text = repr(str(value))
    elif isinstance(value, float) and value == value and abs(value) != float("inf"):
        text = f"{value:.12g}"
    else:
        text = yaml.safe_dump(_plain(value), default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
        text = text.removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {key: _plain(item) for key, item in value}
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def alternatives(annotation: Any) -> list[Any]:
    """The branches of a union, of whatever depth, without what annotates them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [branch for argument in get_args(annotation) for branch in alternatives(argument)]
    return [annotation]


def tags(model: Any) -> tuple[Any, ...]:
    """The values that ``name`` of one of several models may have; none where there is no such choice."""
    field = getattr(model, "model_fields", {}).get("name")
    return get_args(field.annotation) if field is not None else ()


def is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    """Whether it is a class of options."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def leaves(annotation: Any) -> frozenset[Any]:
    """The types that values of ``annotation`` are made of, lists looked into."""
    found: set[Any] = set()
    for branch in alternatives(annotation):
        if get_origin(branch) in (tuple, list, set, frozenset):
            found |= {leaf for argument in get_args(branch) if argument is not Ellipsis for leaf in leaves(argument)}
        else:
            found.add(get_origin(branch) or branch)
    return frozenset(found)


def allowed(field: FieldInfo) -> str:
    """What ``field`` takes: ``a whole number from 1 to 100``, ``float32 or bf16``, ``a list of 2 numbers``."""
    if field.examples:
        return join_or([str(example) for example in field.examples])
    return _takes(field.annotation, field.metadata, False)


def _takes(annotation: Any, metadata: Iterable[Any], plural: bool) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [item for given in arguments[1:] for item in (given.metadata if isinstance(given, FieldInfo) else [given])]
        return _takes(arguments[0], [*inner, *metadata], plural)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, metadata, plural)
    if origin is Literal:
        return join_or([str(argument) if isinstance(argument, str) else written(argument) for argument in arguments])
    if origin in (tuple, list):
        return _list(arguments, metadata)
    if is_model(annotation):
        return _mapping(annotation)
    if annotation in (int, float):
        kind = "whole number" if annotation is int else "number"
        return " ".join(filter(None, [f"{kind}s" if plural else f"a {kind}", _bounds(metadata)]))
    words = {bool: "true or false", str: "text", Path: "paths" if plural else "a path", type(None): "null"}
    if (origin or annotation) in (dict, Mapping):
        rewards = any(is_model(branch) for argument in arguments[1:] for branch in alternatives(argument))
        return "a mapping from labels to rewards" if rewards else "a mapping"
    return words.get(annotation, "another value")


def _one_of(arguments: Sequence[Any], metadata: Iterable[Any], plural: bool) -> str:
    branches = [branch for argument in arguments for branch in _flat(argument)]
    named = [str(tag) for branch in branches for tag in tags(_bare(branch))]
    words = [f"{join_or(named)}, or a mapping with that 'name'"] if len(named) > 1 else []
    words += [_takes(branch, metadata, plural) for branch in branches if not (len(named) > 1 and tags(_bare(branch)))]
    words = list(dict.fromkeys(words))
    return ", or ".join(words) if any(" " in word for word in words) else join_or(words)


def _bare(annotation: Any) -> Any:
    return _bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _flat(annotation: Any) -> list[Any]:
    """The branches of a nested union, bounds and all."""
    inner = _bare(annotation)
    if get_origin(inner) in (Union, types.UnionType):
        return [branch for argument in get_args(inner) for branch in _flat(argument)]
    return [annotation]


def _list(arguments: Sequence[Any], metadata: Iterable[Any]) -> str:
    several = [argument for argument in arguments if argument is not Ellipsis]
    if any(is_model(branch) for branch in alternatives(several[0])):
        return "a list of names, or of mappings with 'name'"
    count = "" if Ellipsis in arguments or len(several) == 1 else f"{len(several)} "
    if get_origin(_bare(several[0])) is tuple:
        return "a list of lists such as [0, 0.5]"
    least = "at least one of " if any(getattr(item, "min_length", 0) for item in metadata) else ""
    what = "" if len(set(several)) > 1 else _takes(several[0], (), True)
    return f"a list of {least}{count}{what or 'values'}"


def _mapping(model: type[BaseModel]) -> str:
    if len(tags(model)) == 1 and model.model_fields["name"].is_required() is False:
        return f"{tags(model)[0]}, or a mapping with 'name: {tags(model)[0]}'"
    if hasattr(model, "build") and "name" not in model.model_fields:
        return "the name of a component, or a mapping with 'name'"
    keys = list(model.model_fields)
    return f"a mapping with {', '.join(keys[:4])}, …" if len(keys) > 4 else f"a mapping with {', '.join(keys)}"


def _bounds(metadata: Iterable[Any]) -> str:
    bounds: dict[str, Any] = {}
    for item in metadata:
        bounds |= {name: limit for name in ("ge", "gt", "le", "lt") if (limit := getattr(item, name, None)) is not None}
    told = {name: written(limit) for name, limit in bounds.items()}
    if "ge" in told and "le" in told:
        return f"from {told['ge']} to {told['le']}"
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    return " and ".join(f"{words[name].removeprefix('of ') if i else words[name]} {told[name]}" for i, name in enumerate(told))
