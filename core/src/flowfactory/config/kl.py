"""The weight of a KL: a number, or one that adapts until the divergence is what the user asks for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from flowfactory.config.strict import Strict

TOLERANCE, STEP, FARTHEST = 1.5, 2.0, 1024.0


class AdaptiveKL(Strict):
    """After an iteration the weight doubles where the divergence is far above ``target``, and halves where it is far below.

    PPO's adaptive KL penalty, arXiv:1707.06347, section 4: beyond 1.5 times the target, and below a 1.5th of it. There the
    divergence is from the policy before the update; here it is the algorithm's own term ``kl``, from its reference.
    """

    name: Literal["adaptive"] = Field("adaptive", description="that the weight follows the target")
    target: float = Field(gt=0, description="the mean of the metric kl that an iteration is to have")
    start: float = Field(1e-2, gt=0, description="weight in the first iteration; it stays within start / 1024 and 1024 start")

    def __call__(self, weight: float, divergence: float) -> float:
        """The weight after an iteration that had ``weight`` and ``divergence``."""
        if divergence < self.target / TOLERANCE:
            weight /= STEP
        elif divergence > self.target * TOLERANCE:
            weight *= STEP
        return min(max(weight, self.start / FARTHEST), self.start * FARTHEST)


def _expand(value: Any) -> Any:
    return {"name": value} if value == "adaptive" else value  # any other text is no KL


KL = Annotated[float, Field(ge=0)] | Annotated[AdaptiveKL, BeforeValidator(_expand)]
"""``x``, or ``{name: adaptive, target: x, start: x}``; 0 is none."""
