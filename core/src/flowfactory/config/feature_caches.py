"""The feature caches that a config can name, which leave out parts of a transformer while samples are drawn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from flowfactory.config.strict import Strict, expand_name


class FirstBlockConfig(Strict):
    """The first-block cache of diffusers, after TeaCache, arXiv:2411.19108."""

    name: Literal["first-block"] = Field("first-block", description="which cache")
    threshold: float = Field(
        0.08, gt=0, le=1, description="relative change of what the first block adds up to which the other blocks are left out"
    )


FeatureCache = Annotated[FirstBlockConfig, BeforeValidator(expand_name)]
"""A cache by its ``name``."""
