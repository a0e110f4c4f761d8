"""Reward-based velocity matching, arXiv:2608.23664: the pretraining loss, signed by the advantage, and an optional anchor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from flowfactory.flow import TimestepsConfig
from flowfactory.policy import Decay, Power
from flowfactory.rl import KL, NormGuardConfig
from flowfactory_awm.velocity_matching import Anchor, VelocityMatching

if TYPE_CHECKING:
    from flowfactory import RunConfig


class RVMConfig(NormGuardConfig, TimestepsConfig):
    """RVM, arXiv:2608.23664: good samples pull the velocity to their own, bad ones push it away; an anchor may hold it."""

    known_as = ("reward-based-velocity-matching", "velocity-matching")

    advantage_scale: float = Field(0.1, gt=0, description="what advantages are multiplied by")
    kl: KL = Field(0.0, description="weight of the squared distance from the anchor's velocity")
    anchor: Literal["reference", "ema"] = Field(
        "reference", description="the model that training started from, or an average of the weights"
    )
    ema: Decay = Field(Power(decay=0.9), description="how that average of weights moves")

    def check(self, run: RunConfig) -> None:
        """The anchor is moved in one way."""
        super().check(run)
        if self.anchor == "ema" and self.kl_term and self.kl_term.refresh:
            raise ValueError("algorithm.kl.refresh: the anchor ema moves as algorithm.ema says; leave out one of the two")

    def remarks(self, run: RunConfig) -> Iterator[str]:
        """An anchor that nothing is held by, and an average that is not the anchor."""
        yield from super().remarks(run)
        set_here = self.model_fields_set
        if not self.kl and (unused := [key for key in ("anchor", "ema") if key in set_here]):
            yield f"algorithm.{unused[0]} does nothing while algorithm.kl is 0; set kl, or leave it out"
        elif "ema" in set_here and self.anchor != "ema":
            yield f"algorithm.ema is of the anchor ema, and does nothing under {self.anchor}; leave it out"

    def build(self, label: str) -> VelocityMatching:
        anchor = Anchor(self.kl, self.ema if self.anchor == "ema" else None)
        return VelocityMatching(self.timesteps, self.advantage_scale, anchor, self.norm_guard)
