"""What every part of a config is."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class Strict(BaseModel):
    """Frozen, and refuses unknown keys and numbers that are not finite, those of every component's options too."""

    # what has no limit is null; an infinite or absent number would only be found out where it has done its harm
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

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


def expand_name(value: Any) -> Any:
    """``{name: value}`` for a bare name: the shorthand of what takes its other options' defaults."""
    return {"name": value} if isinstance(value, str) else value
