"""The dynamics that come with core: the ODE, and Flow-GRPO's SDE with the same marginals."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import flow
from flowfactory.config import DynamicsConfig
from flowfactory.types import Transition

if TYPE_CHECKING:
    from flowfactory.config import RunConfig


class ODEConfig(DynamicsConfig):
    """The probability-flow ODE by Euler steps: deterministic, without a log-density."""

    stochastic: ClassVar[bool] = False

    def build(self, label: str) -> ODE:
        return ODE()


class ODE:
    """x + (next_sigma - sigma) v."""

    stochastic = False

    def window(self, steps: int, generator: torch.Generator) -> frozenset[int]:
        """No step is stochastic."""
        return frozenset()

    def transition(self, velocity: Tensor, latents: Tensor, sigma: Tensor, next_sigma: Tensor) -> Transition:
        """The Euler step, with a standard deviation of zero."""
        return Transition(flow.euler(velocity, latents, sigma, next_sigma), torch.zeros_like(sigma))

    def log_density(self, next_latents: Tensor, transition: Transition) -> Tensor:
        """ValueError: a deterministic step has no density."""
        raise ValueError("a step of the ODE has no log-density; choose stochastic dynamics, such as flow-sde")


class FlowSDEConfig(DynamicsConfig):
    """Flow-GRPO's SDE (arXiv:2505.05470, eq. 9): the ODE's marginals, with noise to explore."""

    noise_level: float = Field(0.7, gt=0, description="a in sigma_t = a sqrt(sigma / (1 - sigma)); 0.7 in the paper")
    sde_steps: tuple[int, ...] | None = Field(
        None, description="steps, counted from 0, that may be stochastic; all but the last when left out"
    )
    num_sde_steps: int | None = Field(None, ge=1, description="how many of them are drawn an iteration; all when left out")

    def check(self, run: RunConfig) -> None:
        """The window lies inside the steps there are."""
        if run.sampling.steps < 2:
            raise ValueError("sampling.steps: flow-sde needs at least 2 steps, since one step has no spread to borrow")
        candidates = self.candidates(run.sampling.steps)
        outside = [i for i in candidates if not 0 <= i < run.sampling.steps]
        if outside or not candidates or len(set(candidates)) != len(candidates):
            raise ValueError(
                f"sampling.dynamics.sde_steps {list(candidates)}: give distinct steps "
                f"from 0 to {run.sampling.steps - 1} (sampling.steps is {run.sampling.steps})"
            )
        if self.num_sde_steps is not None and self.num_sde_steps > len(candidates):
            raise ValueError(
                f"sampling.dynamics.num_sde_steps ({self.num_sde_steps}) is more than the {len(candidates)} candidates"
            )

    def candidates(self, steps: int) -> tuple[int, ...]:
        """The steps that may be stochastic."""
        # the last step's noise would stay in the picture
        return tuple(range(max(1, steps - 1))) if self.sde_steps is None else self.sde_steps

    def build(self, label: str) -> FlowSDE:
        return FlowSDE(self)


class FlowSDE:
    """dx = [v + a²/(2 (1 - sigma)) (x + (1 - sigma) v)] dsigma + a sqrt(sigma / (1 - sigma)) dw."""

    stochastic = True

    def __init__(self, config: FlowSDEConfig) -> None:
        self.noise_level = config.noise_level
        self._config = config

    def window(self, steps: int, generator: torch.Generator) -> frozenset[int]:
        """``num_sde_steps`` of the candidates, drawn without replacement."""
        candidates = self._config.candidates(steps)
        count = self._config.num_sde_steps or len(candidates)
        return frozenset(candidates[i] for i in torch.randperm(len(candidates), generator=generator)[:count].tolist())

    def transition(self, velocity: Tensor, latents: Tensor, sigma: Tensor, next_sigma: Tensor) -> Transition:
        """Mean [B, ...] and standard deviation [B, 1...] of the next latents. arXiv:2505.05470, eq. 9.

        At sigma 1, where the spread is infinite, 1 - sigma is borrowed from the next sigma, as the authors' code does.
        """
        dt = next_sigma - sigma
        borrowed = torch.where(sigma >= 1, next_sigma, sigma)
        spread = self.noise_level * torch.sqrt(sigma / (1 - borrowed))
        drift = spread.square() / (2 * sigma)
        mean = latents * (1 + drift * dt) + velocity * (1 + drift * (1 - sigma)) * dt
        return Transition(mean, spread * torch.sqrt(-dt))

    def log_density(self, next_latents: Tensor, transition: Transition) -> Tensor:
        """[B]: mean over elements of the Gaussian's log-density."""
        return flow.log_normal(next_latents, *transition)
