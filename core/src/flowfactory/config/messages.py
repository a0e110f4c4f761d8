"""What a mistake in a config is answered with: one line that names the key and the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ValidationError,
)

from flowfactory.suggestions import did_you_mean


def locate(place: str, source: str, overrides: Sequence[str]) -> str:
    """``file: key``, or ``--set key`` where the key came from the command line."""
    for assignment in overrides:
        path = assignment.partition("=")[0]
        if place == path or place.startswith(path + ".") or path.startswith(place + "."):
            return f"--set {place}"
    return f"{source}: {place}" if place else source


def describe_error(error: ValidationError, schema: type[BaseModel], source: str, overrides: Sequence[str]) -> str:
    """The line about the first problem, with the place as the user wrote it, and how many more there are."""
    problems = error.errors()
    # of the branches of a union the one that went deepest is the one that was meant
    first = max((p for p in problems if p["loc"][:2] == problems[0]["loc"][:2]), key=lambda p: len(p["loc"]))
    keys, owner = _keys_and_owner(schema, first["loc"])
    where = locate(".".join(keys), source, overrides)
    if first["type"] == "extra_forbidden":
        known = owner.model_fields if owner else {}
        message = f"unknown key{did_you_mean(keys[-1], known)}"
    elif first["type"] == "value_error":
        message = str(first["ctx"]["error"])
    elif first["type"] == "union_tag_invalid":
        names = re.findall(r"'([^']+)'", first["ctx"]["expected_tags"])
        message = f"there is no {first['ctx']['tag']!r}{did_you_mean(first['ctx']['tag'], names)}"
    elif first["type"] == "union_tag_not_found":
        message = "say which with 'name'"
    elif first["type"] == "missing":
        message = "this key is missing"
    else:
        message = f"{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
    places = {tuple(_keys_and_owner(schema, problem["loc"])[0]) for problem in problems}
    # the other branches of a union complain of the whole that the deepest one has found the mistake in
    more = sum(place != tuple(keys[: len(place)]) for place in places)
    return f"{where}: {message}" + (f" (and {more} more)" if more else "")


def _keys_and_owner(schema: Any, loc: Sequence[str | int]) -> tuple[list[str], type[BaseModel] | None]:
    """The keys as the user wrote them, and the model that the last one belongs to.

    pydantic puts the tag of a discriminated union and the branch of a plain one into ``loc``; those are left out.
    """
    keys: list[str] = []
    owner: type[BaseModel] | None = None
    here = _alternatives(schema)
    for part in loc:
        branches = [branch for branch in here if part in (*_tags(branch), getattr(branch, "__name__", None))]
        if len(here) > 1 and (branches or str(part).startswith("literal[")):
            here = branches or here
            continue
        keys.append(str(part))
        models = [branch for branch in here if isinstance(branch, type) and issubclass(branch, BaseModel)]
        owner = next((model for model in models if part in model.model_fields), models[0] if models else None)
        if owner is not None:
            field = owner.model_fields.get(str(part))
            here = _alternatives(field.annotation) if field else []
        else:  # dict[str, Model] and tuple[Model, ...]
            items = [argument for branch in here for argument in get_args(branch) if argument not in (str, Ellipsis)]
            here = [alternative for item in items for alternative in _alternatives(item)]
    return keys, owner


def _alternatives(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [branch for argument in get_args(annotation) for branch in _alternatives(argument)]
    return [annotation]


def _tags(model: Any) -> tuple[Any, ...]:
    field = getattr(model, "model_fields", {}).get("name")
    return get_args(field.annotation) if field is not None else ()
