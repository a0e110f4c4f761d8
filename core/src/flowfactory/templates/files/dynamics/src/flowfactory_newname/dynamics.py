"""The dynamics: their options, and how latents go from one sigma to the next."""

from __future__ import annotations

from typing import ClassVar

import torch
from flowfactory import DynamicsConfig, RunConfig, Transition
from flowfactory.flow import log_normal
from pydantic import Field
from torch import Generator, Tensor


class NewNameConfig(DynamicsConfig):
    """An SDE with the marginals of the ODE, whose noise falls with sigma: dx = drift dsigma + noise_level sigma dw."""

    # Change: False for dynamics without noise, whose steps have no log-density.
    stochastic: ClassVar[bool] = True

    noise_level: float = Field(0.7, gt=0, le=10, description="the noise at sigma 1; 0.7 is that of flow-sde at sigma 0.5")

    def check(self, run: RunConfig) -> None:
        """One step more than the last, which has no noise."""
        if run.sampling.steps < 2:
            raise ValueError("sampling.steps: newname needs at least 2, since the last has no noise")

    def build(self, label: str) -> NewName:
        return NewName(self.noise_level)


class NewName:
    """Sigma runs from 1 (noise) to 0 (clean); the velocity is noise less clean latents."""

    stochastic = True

    def __init__(self, noise_level: float) -> None:
        self.noise_level = noise_level

    def window(self, steps: int, iteration: int, generator: Generator) -> frozenset[int]:
        """All steps but the last are stochastic: its noise would stay in the picture."""
        # Change: fewer steps cost less to learn from; draw them with the generator.
        return frozenset(range(steps - 1))

    def transition(self, velocity: Tensor, latents: Tensor, sigma: Tensor, next_sigma: Tensor) -> Transition:
        """Mean [B, ...] and standard deviation [B, 1...] of the next latents; sigmas are [B, 1...]."""
        # Change: the first term is the ODE's; the second takes as much noise away as the step adds.
        step, spread = next_sigma - sigma, self.noise_level * sigma
        noise = latents + (1 - sigma) * velocity
        mean = latents + velocity * step + spread.square() / (2 * sigma) * noise * step
        return Transition(mean, spread * torch.sqrt(-step))

    def log_density(self, next_latents: Tensor, transition: Transition) -> Tensor:
        """[B]: mean over elements of the Gaussian's log-density."""
        return log_normal(next_latents, *transition)
