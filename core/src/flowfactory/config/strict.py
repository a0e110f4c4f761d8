"""What every part of a config is."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from flowfactory.config.wording import leaves

NUMBERS = frozenset({int, float})


class Strict(BaseModel):
    """Frozen, and refuses unknown keys, and truth values, numbers and text in one another's place."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _mark_other_kinds(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        kinds = {key: leaves(field.annotation) for key, field in cls.model_fields.items() if key in values}
        return {key: _mark(value, kinds[key]) if key in kinds else value for key, value in values.items()}


class _OfAnotherKind:
    """What no type takes: pydantic would read true as 1, 1 as true, and '12' as 12."""


def _mark(value: Any, kinds: frozenset[Any]) -> Any:
    if isinstance(value, list | tuple):
        return [_mark(item, kinds) for item in value]
    if isinstance(value, bool):
        other = bool not in kinds and bool(kinds & NUMBERS)
    elif isinstance(value, int | float):
        other = bool in kinds and not kinds & NUMBERS
    else:  # a path, a name and one of several words are text too
        other = isinstance(value, str) and kinds <= {int, float, bool, type(None)}
    return _OfAnotherKind() if other else value


def expand_name(value: Any) -> Any:
    """``{name: value}`` for a bare name: the shorthand of what takes its other options' defaults."""
    return {"name": value} if isinstance(value, str) else value
