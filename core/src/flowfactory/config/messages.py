"""What pydantic has found, as findings: the keys as they are written, the value, what is taken, and what was meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from flowfactory.config import synonyms
from flowfactory.config.findings import MOST, Finding, WrongConfig
from flowfactory.config.wording import LONGEST, allowed, alternatives, is_model, tags, written
from flowfactory.suggestions import did_you_mean

Keys = tuple[str | int, ...]
"""From the top of a config down to one of its keys."""


@dataclass(frozen=True)
class Problem:
    """One finding, the ``keys`` down to what it is about, and whether a key that must be there is missing."""

    keys: Keys
    findings: tuple[Finding, ...]
    missing: bool = False


@dataclass(frozen=True)
class _Found:
    """Where an error of pydantic is: the keys as written, the option there, and the class of options it is one of."""

    keys: Keys
    field: FieldInfo | None
    owner: type[BaseModel] | None


def describe(error: ValidationError, schema: type[BaseModel], raw: Any) -> list[Problem]:
    """The problems, one a place, at most MOST."""
    problems: dict[Keys, Problem] = {}
    for told in error.errors():
        found = _find(schema, told["loc"], raw, told["type"] == "missing")
        if len(problems) == MOST:
            break
        if found.keys not in problems:
            problems[found.keys] = _problem(told, found, schema, raw)
    # the other branches of a union complain of the whole that the deepest one has found the mistake in
    return [p for keys, p in problems.items() if not any(keys == other[: len(keys)] and keys != other for other in problems)]


def _problem(told: Any, found: _Found, schema: type[BaseModel], raw: Any) -> Problem:
    place, value = dotted(found.keys), lookup(raw, found.keys)
    kind = told["type"]
    if kind == "missing" and isinstance(told["loc"][-1], int):
        kind = "too_short"  # an item of a list
    if kind == "value_error" and isinstance(told["ctx"]["error"], WrongConfig):
        inner = told["ctx"]["error"].findings
        return Problem(found.keys, tuple(Finding(f"{place}.{each.place}".rstrip("."), each.message) for each in inner))
    if kind == "extra_forbidden":
        message = _unknown_key(found, schema)
    elif kind == "invalid_key":
        message = "this key is no text; write it in quotes"
    elif kind == "missing":
        message = f"this key is missing{_give(found.field, '; give ')}"
    elif kind == "value_error":
        message = str(told["ctx"]["error"])
    elif kind == "union_tag_invalid":
        names = re.findall(r"'([^']+)'", told["ctx"]["expected_tags"])
        tag = value["name"] if isinstance(value, Mapping) and "name" in value else told["ctx"]["tag"]
        message = f"there is no {written(tag)}{did_you_mean(tag, names, synonyms.values(place, tag, names))}"
    elif kind == "union_tag_not_found":
        message = f"say which with 'name'{did_you_mean('', _names(found.field))}"
    else:
        finite = " that is finite" if kind == "finite_number" else ""
        message = f"got {written(value)}{_give(found.field, '; give ')}{finite}{_meant(place, value, found.field)}"
    # without its name the rest of a section would be taken for another's
    keys = found.keys[:-1] if kind == "literal_error" and found.keys[-1:] == ("name",) else found.keys
    return Problem(keys, (Finding(place, message),), kind == "missing")


def _give(field: FieldInfo | None, before: str) -> str:
    if field is None:
        return ""
    words = allowed(field)
    return f"{before}{words}" + (f": {field.description}" if words.startswith("text") and field.description else "")


def _names(field: FieldInfo | None) -> list[str]:
    return [str(tag) for branch in alternatives(field.annotation) for tag in tags(branch)] if field else []


def _meant(place: str, value: Any, field: FieldInfo | None) -> str:
    meant = synonyms.meaning(place, value, field)
    return f"; did you mean {meant}?" if meant else ""


def _unknown_key(found: _Found, schema: type[BaseModel]) -> str:
    section, key = dotted(found.keys[:-1]), str(found.keys[-1])
    known = [*(found.owner.model_fields if found.owner else {})]
    if note := synonyms.NOTES.get(synonyms.plain(key)):
        return f"unknown key; {note}"
    meant = synonyms.keys(section, key, known, schema)
    top = ", at the top" if section and len(meant) == 1 and meant[0] in schema.model_fields and meant[0] not in known else ""
    return f"unknown key{did_you_mean(key, known, meant)}".replace("?", f"{top}?")


def dotted(keys: Sequence[str | int]) -> str:
    """``a.b.c``, of each key at most LONGEST characters."""
    return ".".join(told if len(told := str(key)) <= LONGEST else f"{told[: LONGEST - 2]} …" for key in keys)


def lookup(raw: Any, keys: Sequence[str | int]) -> Any:
    """What is written at ``keys``; a name that stands for a whole mapping where they lead further."""
    for key in keys:
        listed = isinstance(raw, list | tuple) and isinstance(key, int) and key < len(raw)
        inside = key in raw if isinstance(raw, Mapping) else listed
        if inside:
            raw = raw[key]
        else:
            return raw if isinstance(raw, str) else None
    return raw


def _find(schema: type[BaseModel], loc: Sequence[str | int], raw: Any, missing: bool) -> _Found:
    """Where it is in ``raw``: pydantic puts into ``loc`` which branch of a union it tried, which no one has written."""
    keys: list[str | int] = []
    place = _Found((), None, schema)
    here, node, label = alternatives(schema), raw, None
    for number, part in enumerate(loc):
        last_of_missing = missing and number == len(loc) - 1 and isinstance(part, str)
        is_key = (isinstance(node, Mapping) and part in node) or (isinstance(node, list | tuple) and isinstance(part, int))
        if not is_key and not last_of_missing and not _opens_shorthand(here, node, part):
            label = part
            continue
        keys.append(part)
        owner = _owner(here, node, part, label)
        field = owner.model_fields.get(str(part)) if owner else None
        node, label = lookup(node, [part]) if is_key else None, None
        if owner is not None or not isinstance(part, int):
            place = _Found(tuple(keys), field, owner)
        if owner is not None:
            here = alternatives(field.annotation) if field else []
        else:  # dict[str, Model] and tuple[Model, ...]
            items = [argument for branch in here for argument in get_args(branch) if argument not in (str, Ellipsis)]
            here = [alternative for item in items for alternative in alternatives(item)]
            if isinstance(part, int) and any(map(is_model, here)):
                place = _Found(tuple(keys), None, None)
    return place


def _opens_shorthand(here: Sequence[Any], node: Any, part: str | int) -> bool:
    """Whether a name alone stands where the option ``part`` is wanted."""
    return isinstance(node, str) and len(here) == 1 and is_model(here[0]) and part in here[0].model_fields


def _owner(here: Sequence[Any], node: Any, part: str | int, label: Any) -> type[BaseModel] | None:
    models = [branch for branch in here if is_model(branch)]
    name = node.get("name") if isinstance(node, Mapping) else None
    for wanted in (label, name):
        chosen = [model for model in models if wanted is not None and wanted in (*tags(model), model.__name__)]
        if chosen:
            return chosen[0]
    return next((model for model in models if part in model.model_fields), models[0] if models else None)
