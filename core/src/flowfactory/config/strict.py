"""What every part of a config is."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Frozen, and refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def expand_name(value: Any) -> Any:
    """``{name: value}`` for a bare name: the shorthand of what takes its other options' defaults."""
    return {"name": value} if isinstance(value, str) else value
