"""How the deterministic steps of a rollout are taken: by Euler, or by a solver of second order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from flowfactory.types import Dynamics

Ask = Callable[[Tensor, float], Tensor]
"""``ask(latents [B, ...], sigma)``: the velocity there, in float32, for one transformer evaluation more."""


class Solver(Protocol):
    """Takes deterministic steps of one rollout that follow on one another; what it remembers of them is its own."""

    def step(self, velocity: Tensor, latents: Tensor, sigma: float, next_sigma: float, ask: Ask) -> Tensor:
        """The next latents [B, ...], from ``latents`` at ``sigma``, where all samples are, and their ``velocity``."""


def euler(velocity: Tensor, latents: Tensor, sigma: Tensor | float, next_sigma: Tensor | float) -> Tensor:
    """The next latents of the probability-flow ODE, one Euler step: latents + (next_sigma - sigma) velocity."""
    return latents + (next_sigma - sigma) * velocity


class Euler:
    """Of first order, one evaluation a step."""

    def step(self, velocity: Tensor, latents: Tensor, sigma: float, next_sigma: float, ask: Ask) -> Tensor:
        """See :func:`euler`."""
        return euler(velocity, latents, sigma, next_sigma)


class DPMSolver:
    """DPM-Solver++(2M), arXiv:2211.01095, of second order, one evaluation a step.

    The first step is Euler's. So is the last, as in diffusers: it arrives at sigma 0, which is infinitely far in the logarithm
    that steps are measured in.
    """

    def __init__(self) -> None:
        self._before: tuple[float, Tensor] | None = None

    def step(self, velocity: Tensor, latents: Tensor, sigma: float, next_sigma: float, ask: Ask) -> Tensor:
        """The multistep update in its midpoint form, which for this convention of sigma is Euler's step and a correction.

        With x the latents, D0 the clean prediction, s and t the sigmas: (t / s) x + (1 - t / s) (D0 + D1 / 2), where D1 is how
        far D0 moved since the step before, times the length of this step over that of the one before.
        """
        clean, here = latents - sigma * velocity, _log_ratio(sigma)
        arrived, before = euler(velocity, latents, sigma, next_sigma), self._before
        self._before = here, clean
        if before is None or next_sigma == 0:
            return arrived
        start, clean_before = before
        lengths = (_log_ratio(next_sigma) - here) / (here - start)
        return arrived + 0.5 * (1 - next_sigma / sigma) * lengths * (clean - clean_before)


def _log_ratio(sigma: float) -> float:
    """The logarithm of (1 - sigma) / sigma, half that of the ratio of signal to noise: minus infinity at pure noise."""
    return math.log1p(-sigma) - math.log(sigma) if sigma < 1 else -math.inf


class Heun:
    """Heun's method, of second order: two evaluations a step, but one in the last.

    That is Euler's, as in diffusers' FlowMatchHeunDiscreteScheduler: no model learned a velocity at sigma 0.
    """

    def step(self, velocity: Tensor, latents: Tensor, sigma: float, next_sigma: float, ask: Ask) -> Tensor:
        """Euler's step, with the mean of the velocities at both of its ends."""
        arrived = euler(velocity, latents, sigma, next_sigma)
        if next_sigma == 0:
            return arrived
        return euler((velocity + ask(arrived, next_sigma)) / 2, latents, sigma, next_sigma)


def make_solver(dynamics: Dynamics) -> Solver:
    """What takes deterministic steps under ``dynamics``: what its ``make_solver`` returns, if it has one, else Euler."""
    make: Callable[[], Solver] = getattr(dynamics, "make_solver", Euler)
    return make()
