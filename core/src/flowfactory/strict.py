"""What every part of a config is."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Frozen, and refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
