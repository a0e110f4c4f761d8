"""Where the prompts of a run come from: one file, or several that have names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from flowfactory.config.paths import LocalPath, prompts_error
from flowfactory.config.strict import Strict
from flowfactory.config.wording import written

Side = Annotated[int, Field(ge=1, le=16_384)]
"""Pixels of a picture's height or width."""


class Source(NamedTuple):
    """A file of prompts, its name, "" where it has none, and the labels of the rewards that apply; None for all."""

    name: str
    file: Path
    rewards: tuple[str, ...] | None = None


class PromptSource(Strict):
    """One of several files of training prompts; its groups are a part of an iteration's."""

    file: LocalPath = Field(description="prompts to train on")
    weight: int = Field(
        1,
        ge=1,
        le=10_000,
        description="of an iteration's groups, as many as the others' weights leave it; exact over their sum",
    )
    rewards: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="labels of rewards that apply to its prompts, unless a prompt lists its own; null: all",
    )
    teacher: str | None = Field(
        None,
        description="of the algorithm's teachers, the one of its prompts; left out: that of the source's name, or the only one",
    )
    size: tuple[Side, Side] | None = Field(
        None, description="height, width in pixels that its prompts are trained at; as in sampling when left out"
    )
    heldout: LocalPath | None = Field(None, description="held-out prompts of this source, drawn with those of prompts.heldout")

    @field_validator("file", "heldout")
    @classmethod
    def _check_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        key = "prompts.train" if info.field_name == "file" else "prompts.heldout"
        return check_file(path, key, info)


def check_file(path: Path | None, key: str, info: ValidationInfo) -> Path | None:
    """``path``. ValueError: no prompts can be read there, and the ``key`` is not among those of which nothing need be here."""
    if path is not None and key not in (info.context or {}).get("unread", ()) and (reason := prompts_error(path)):
        none = key == "prompts.heldout" and path.name.lower() in ("none", "null")
        raise ValueError(f"{reason}; for none, write null" if none else reason)
    return path


def _kind(value: Any) -> str:
    return "sources" if isinstance(value, Mapping) else "file"


def _check_names(value: Any) -> Any:
    for name in value if isinstance(value, Mapping) else ():
        if not re.fullmatch(NAME, str(name)):
            raise ValueError(f"a source is called {written(name)}; call it by letters, digits, - and _ alone")
    return value


def _check_shape(value: Any) -> Any:
    if not isinstance(value, Mapping | PromptSource):
        raise ValueError(f"got {written(value)}; give {{file: …}}, with its weight if it is not 1")
    return value


NAME = r"[A-Za-z0-9_-]{1,100}"
Sources = Annotated[dict[str, Annotated[PromptSource, BeforeValidator(_check_shape)]], BeforeValidator(_check_names)]
Train = Annotated[Annotated[LocalPath, Tag("file")] | Annotated[Sources, Tag("sources")], Discriminator(_kind)]
"""A file, or several by their names."""
