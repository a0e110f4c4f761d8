"""The optimizers that a config can name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from flowfactory.config.strict import Strict, expand_name

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Strict):
    """What all optimizers share. All are element-wise, so that a step of every shard is a step of the whole."""

    method: ClassVar[Literal["adamw", "lion"]]

    name: str
    lr: float = Field(gt=0, le=10, description="learning rate")
    weight_decay: float = Field(0.0, ge=0, le=100, description="decoupled, times the learning rate")

    @property
    def bits(self) -> Literal[8, 32]:
        """What an element of a moment is stored in."""
        return 8 if self.name.endswith("8bit") else 32

    @property
    def paged(self) -> bool:
        """Whether moments move to host memory while a GPU is short of its own."""
        return self.name.startswith("paged-")


class AdamWConfig(OptimizerConfig):
    """AdamW, arXiv:1711.05101; with moments in 8 bits, arXiv:2110.02861."""

    method = "adamw"

    name: Literal["adamw", "adamw8bit", "paged-adamw", "paged-adamw8bit"] = "adamw"
    lr: float = Field(3e-4, gt=0, le=10, description="learning rate")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="decay of the two moments")
    eps: float = Field(1e-8, gt=0, le=1, description="added to the root of the second moment")


class LionConfig(OptimizerConfig):
    """Lion, arXiv:2302.06675: steps along a sign, with one moment."""

    method = "lion"

    name: Literal["lion", "lion8bit", "paged-lion", "paged-lion8bit"] = "lion"
    lr: float = Field(1e-4, gt=0, le=10, description="learning rate; AdamW's divided by 3 to 10")
    betas: tuple[Beta, Beta] = Field((0.9, 0.99), description="the momentum's share of the sign, and its decay")


def _named_optimizer(value: Any) -> Any:
    return {"name": "adamw", **named} if isinstance(named := expand_name(value), Mapping) else value


Optimizer = Annotated[AdamWConfig | LionConfig, Field(discriminator="name"), BeforeValidator(_named_optimizer)]
"""An optimizer by its ``name``, adamw when left out."""
