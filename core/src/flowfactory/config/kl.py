"""The term ``kl`` of a loss: what it weighs, which samples it is for, and when its reference is taken anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

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


class KLGate(Strict):
    """The KL is for the samples alone whose trained reward is the most at odds with the others. GARDO, arXiv:2512.24138."""

    share: float = Field(0.1, gt=0, le=1, description="of an iteration's pictures, those of the highest uncertainty")


class KLRefresh(Strict):
    """The reference of the KL becomes the present weights again and again. GARDO, arXiv:2512.24138."""

    above: float | None = Field(
        None, gt=0, description="after an iteration whose metric kl is above this; null: however large it is"
    )
    every: int | None = Field(
        100, ge=1, le=1_000_000_000, description="after so many optimizer steps since the last time; null: however many"
    )

    @model_validator(mode="after")
    def _check_some_time(self) -> KLRefresh:
        if self.above is None and self.every is None:
            raise ValueError("without above and every it would never be; set one of them, or leave refresh out")
        return self


def _kind(value: Any) -> str:
    if isinstance(value, KLTerm) or (isinstance(value, Mapping) and "name" not in value and not _is_nameless(value)):
        return "KLTerm"
    adapts = value == "adaptive" or isinstance(value, AdaptiveKL | Mapping)  # any other text is no KL
    return "AdaptiveKL" if adapts else "number"


def _expand(value: Any) -> Any:
    if isinstance(value, Mapping):
        _check_place(value)
    return {"name": value} if value == "adaptive" else value


def _check_place(value: Mapping[Any, Any]) -> None:
    """ValueError: ``value``, a weight that adapts, does not say so, or holds what goes beside it."""
    if "name" not in value:
        raise ValueError("a weight that adapts says so; add name: adaptive")
    if beside := [key for key in value if key in ("gate", "refresh")]:
        whole = ", ".join(["coefficient: {name: adaptive, target: …}", *(f"{key}: {{…}}" for key in beside)])
        raise ValueError(f"{beside[0]} goes beside a weight that adapts, not into it; write kl: {{{whole}}}")


def _is_nameless(value: Mapping[Any, Any]) -> bool:
    """Whether these are the options of a weight that adapts, and none of a whole term."""
    return bool({"target", "start"} & value.keys()) and not {"coefficient", "gate", "refresh"} & value.keys()


Adaptive = Annotated[AdaptiveKL, BeforeValidator(_expand), Tag("AdaptiveKL")]


class KLTerm(Strict):
    """``{coefficient: x, gate: {share: x}, refresh: {above: x, every: n}}``."""

    coefficient: Annotated[Annotated[float, Field(gt=0), Tag("number")] | Adaptive, Discriminator(_kind)] = Field(
        description="weight of the term: a number, or one that adapts"
    )
    gate: KLGate | None = Field(None, description="which pictures it is for; null: all")
    refresh: KLRefresh | None = Field(
        None, description="when its reference is taken anew; null: it stays where training started"
    )


# by kind, so that what is wrong with one of them is told of that alone
KL = Annotated[Annotated[float, Field(ge=0), Tag("number")] | Adaptive | Annotated[KLTerm, Tag("KLTerm")], Discriminator(_kind)]
"""``x``, ``{name: adaptive, target: x, start: x}``, or one of the two as ``coefficient`` of a KLTerm; 0 is none."""


def kl_term(kl: float | AdaptiveKL | KLTerm) -> KLTerm | None:
    """All that the option ``kl`` says; None where there is no KL."""
    if isinstance(kl, KLTerm):
        return kl
    return KLTerm.model_construct(coefficient=kl) if kl else None
