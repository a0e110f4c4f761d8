"""Averages of weights: how much of itself an average keeps when it moves towards the present weights.

After iteration n, counted from 0, an average becomes ``decay(n)`` of itself and ``1 - decay(n)`` of the present weights:
0 copies them, 1 stands still. With ``counted: steps`` it moves after each optimizer step instead, and n counts those.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from flowfactory.config.strict import Strict, expand_name

Share = Annotated[float, Field(ge=0, le=1)]


class _Schedule(Strict):
    counted: Literal["iterations", "steps"] = Field(
        "iterations", description="what moves the average and is counted: iterations, or optimizer steps"
    )


class Constant(_Schedule):
    """``decay`` in every iteration."""

    name: Literal["constant"] = "constant"
    decay: Share = Field(0.9, description="kept in every iteration")

    def __call__(self, iteration: int) -> float:
        """What is kept after ``iteration``."""
        return self.decay


class Power(_Schedule):
    """``1 - (1 + n)^-power``, at most ``decay``: an average over a growing past."""

    name: Literal["power"] = "power"
    power: float = Field(0.75, gt=0, le=100, description="1 is the mean of all weights so far")
    decay: Share = Field(0.999, description="the most that is kept")

    def __call__(self, iteration: int) -> float:
        """What is kept after ``iteration``."""
        return min(self.decay, 1 - float((1 + iteration) ** -self.power))


class WarmUp(_Schedule):
    """``(1 + n) / (10 + n)``, at most ``decay``: an average that is quick at first."""

    name: Literal["warm-up"] = "warm-up"
    decay: Share = Field(0.999, description="the most that is kept")

    def __call__(self, iteration: int) -> float:
        """What is kept after ``iteration``."""
        return min(self.decay, (1 + iteration) / (10 + iteration))


class Ramp(_Schedule):
    """From ``start`` to ``end`` over ``iterations``, then ``end``."""

    name: str
    start: Share = Field(0.0, description="kept after the first iteration")
    end: Share = Field(0.999, description="kept in the end")
    iterations: int = Field(100, ge=1, le=10_000_000, description="until the end is reached")


class Linear(Ramp):
    """From ``start`` to ``end`` over ``iterations``, then ``end``."""

    name: Literal["linear"] = "linear"

    def __call__(self, iteration: int) -> float:
        """What is kept after ``iteration``."""
        return self.start + (self.end - self.start) * min(1.0, iteration / self.iterations)


class PiecewiseLinear(_Schedule):
    """Straight lines between ``points`` (iteration, decay); level before the first and after the last."""

    name: Literal["piecewise-linear"] = "piecewise-linear"
    points: tuple[tuple[int, Share], ...] = Field(
        min_length=1,
        examples=["a list of pairs such as [[0, 0], [100, 0.9]], decays from 0 to 1"],
        description="(iteration, decay), in order of iterations",
    )

    @field_validator("points")
    @classmethod
    def _check_order(cls, points: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
        if any(later[0] <= earlier[0] for earlier, later in pairwise(points)):
            raise ValueError("give the points in order, each iteration once")
        return points

    def __call__(self, iteration: int) -> float:
        """What is kept after ``iteration``."""
        before = [point for point in self.points if point[0] <= iteration]
        after = [point for point in self.points if point[0] > iteration]
        if not before or not after:
            return (before[-1] if before else after[0])[1]
        (left, low), (right, high) = before[-1], after[0]
        return low + (high - low) * (iteration - left) / (right - left)


class Cosine(Ramp):
    """From ``start`` to ``end`` over ``iterations`` along half a cosine, then ``end``."""

    name: Literal["cosine"] = "cosine"

    def __call__(self, iteration: int) -> float:
        """What is kept after ``iteration``."""
        done = min(1.0, iteration / self.iterations)
        return self.start + (self.end - self.start) * (1 - math.cos(math.pi * done)) / 2


class WarmupCosine(_Schedule):
    """From 0 to ``start`` in ``warmup`` iterations along a line, from there to ``end`` along half a cosine."""

    name: Literal["warmup-cosine"] = "warmup-cosine"
    warmup: int = Field(10, ge=1, le=10_000_000, description="until start is reached")
    start: Share = Field(0.5, description="kept when the warm-up is over")
    end: Share = Field(0.999, description="kept in the end")
    iterations: int = Field(100, ge=1, le=10_000_000, description="from the warm-up until the end is reached")

    def __call__(self, iteration: int) -> float:
        """What is kept after ``iteration``."""
        if iteration < self.warmup:
            return self.start * iteration / self.warmup
        return Cosine(start=self.start, end=self.end, iterations=self.iterations)(iteration - self.warmup)


Decay = Annotated[
    Constant | Power | WarmUp | Linear | PiecewiseLinear | Cosine | WarmupCosine,
    Field(discriminator="name"),
    BeforeValidator(expand_name),
]
"""The option ``ema``: ``{name: power, power: 0.75}``, or the name alone; ``decay(n)`` is what is kept."""
