"""What every part of a config is."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from flowfactory.config.wording import alternatives, leaves

NUMBERS = frozenset({int, float})


class Strict(BaseModel):
    """Frozen; refuses unknown keys, numbers that are not finite, and truth values, numbers and text in one another's place.

    A section that is left empty, all below it commented out, is as left out.
    """

    # what has no limit is null; an infinite or absent number would only be found out where it has done its harm
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _mark_other_kinds(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = {key: value for key, value in values.items() if value is not None or not cls._may_be_empty(key)}
        kinds = {key: leaves(field.annotation) for key, field in cls.model_fields.items() if key in given}
        return {key: _mark(value, kinds[key]) if key in kinds else value for key, value in given.items()}

    @classmethod
    def _may_be_empty(cls, key: Any) -> bool:
        """Whether ``key`` is a section, or a list or a mapping that may have nothing in it: null leaves it out."""
        field = cls.model_fields.get(key)
        if field is None or type(None) in leaves(field.annotation):
            return False
        only = alternatives(field.annotation)
        section = len(only) == 1 and isinstance(field.default, Strict) and "name" not in type(field.default).model_fields
        return section or field.default in ((), {})

    @field_validator("*")
    @classmethod
    def _check_untyped(cls, value: Any) -> Any:
        """As pydantic does where a field says that it holds numbers."""
        if not _is_finite(value):
            raise ValueError("every number in it should be finite")
        return value


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


class _OfAnotherKind:
    """What no type takes: pydantic would read true as 1, 1 as true, and '12' as 12."""


def _mark(value: Any, kinds: frozenset[Any]) -> Any:
    if isinstance(value, list | tuple):
        return [_mark(item, kinds) for item in value]
    if isinstance(value, bool):
        other = bool not in kinds and bool(kinds & NUMBERS)
    elif isinstance(value, int | float):
        other = bool in kinds and not kinds & NUMBERS
    elif isinstance(value, str) and bool in kinds and value.lower() in ("yes", "no", "on", "off"):
        other = False  # YAML 1.2 reads them as text
    else:  # a path, a name and one of several words are text too
        other = isinstance(value, str) and kinds <= {int, float, bool, type(None)}
    return _OfAnotherKind() if other else value


def expand_name(value: Any) -> Any:
    """``{name: value}`` for a bare name: the shorthand of what takes its other options' defaults."""
    return {"name": value} if isinstance(value, str) else value
