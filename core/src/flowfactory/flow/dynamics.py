"""The dynamics that come with core: the ODE by three solvers, and three ways to add noise to its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowfactory.config.component import DynamicsConfig
from flowfactory.config.strict import Strict
from flowfactory.flow.rollout import log_normal
from flowfactory.flow.solvers import DPMSolver, Euler, Heun, Solver, euler
from flowfactory.types import Transition

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig


class ODEConfig(DynamicsConfig):
    """The probability-flow ODE by Euler steps: deterministic, without a log-density."""

    known_as = ("euler", "flow-match", "deterministic", "ddim", "flow-euler", "none")

    stochastic: ClassVar[bool] = False
    linear: ClassVar[bool] = True

    def build(self, label: str) -> ODE:
        return ODE()


class DPMSolverConfig(DynamicsConfig):
    """The same ODE by DPM-Solver++(2M), arXiv:2211.01095: of second order, and one evaluation a step as Euler's."""

    known_as = ("dpm-solver++", "dpm++", "dpm++ 2m", "dpmpp-2m", "dpm-solver-2m", "dpm-solver-multistep", "dpm", "dpm2")

    stochastic: ClassVar[bool] = False

    def build(self, label: str) -> ODE:
        return ODE(DPMSolver)


class HeunConfig(DynamicsConfig):
    """The same ODE by Heun's method: of second order, with two evaluations a step, but one in the last."""

    known_as = ("flow-match-heun", "heun2", "rk2")

    stochastic: ClassVar[bool] = False
    evaluations: ClassVar[int] = 2

    def build(self, label: str) -> ODE:
        return ODE(Heun)


class ODE:
    """The probability-flow ODE dx = v dsigma, in the steps of a solver."""

    stochastic = False

    def __init__(self, make_solver: Callable[[], Solver] = Euler) -> None:
        self.make_solver = make_solver

    def window(self, steps: int, iteration: int, generator: torch.Generator) -> frozenset[int]:
        """No step is stochastic."""
        return frozenset()

    def transition(self, velocity: Tensor, latents: Tensor, sigma: Tensor, next_sigma: Tensor) -> Transition:
        """The Euler step x + (next_sigma - sigma) v, with a standard deviation of zero."""
        return Transition(euler(velocity, latents, sigma, next_sigma), torch.zeros_like(sigma))

    def log_density(self, next_latents: Tensor, transition: Transition) -> Tensor:
        """ValueError: a deterministic step has no density."""
        raise ValueError("a step of the ODE has no log-density; choose stochastic dynamics, such as flow-sde")


class Slide(Strict):
    """The window of MixGRPO, arXiv:2507.21802: it moves through the candidates as training goes on, and then starts again."""

    every: int = Field(25, ge=1, description="iterations at one place")
    stride: int = Field(1, ge=1, description="candidates that it moves by")


class SDEConfig(DynamicsConfig):
    """Which steps are stochastic; the others follow the ODE."""

    linear: ClassVar[bool] = True

    sde_steps: tuple[int, ...] | None = Field(
        None, description="steps, counted from 0, that may be stochastic; all but the last when left out"
    )
    num_sde_steps: int | None = Field(None, ge=1, description="how many of them are, an iteration; all when left out")
    slide: Slide | None = Field(None, description="a window of num_sde_steps that slides over them; drawn when left out")

    def check(self, run: RunConfig) -> None:
        """The window lies inside the steps there are."""
        name, steps = getattr(self, "name", "these dynamics"), run.sampling.steps
        if steps < 2 and self.sde_steps is None:
            raise ValueError(f"sampling.steps: {name} needs at least 2 steps, since the last one's noise stays in the picture")
        candidates = self.candidates(steps)
        outside = [i for i in candidates if not 0 <= i < steps]
        if outside or not candidates or len(set(candidates)) != len(candidates):
            raise ValueError(
                f"sampling.dynamics.sde_steps {list(candidates)}: give distinct steps "
                f"from 0 to {steps - 1} (sampling.steps is {steps})"
            )
        if self.num_sde_steps is not None and self.num_sde_steps > len(candidates):
            raise ValueError(
                f"sampling.dynamics.num_sde_steps ({self.num_sde_steps}) is more than the {len(candidates)} candidates"
            )
        if self.slide is not None and self.num_sde_steps is None:
            raise ValueError("sampling.dynamics.slide: say with num_sde_steps how many steps the window has")

    def remarks(self, run: RunConfig) -> Iterator[str]:
        """The window slides within the run; what a group shares costs less where it says so."""
        candidates = self.candidates(run.sampling.steps)
        if run.sampling.shared_noise == "prefix" and 0 in candidates and self.num_sde_steps in (None, len(candidates)):
            yield (
                "sampling.shared_noise: prefix: step 0 is stochastic in every iteration, so that no step is shared; write "
                "start, or choose the stochastic steps with sde_steps or num_sde_steps"
            )
        if self.slide is not None and self.slide.every >= run.training.iterations:
            yield (
                f"sampling.dynamics.slide.every {self.slide.every}: the run has {run.training.iterations} iterations, so that "
                "the window never slides; set it lower"
            )

    def stochastic_steps(self, steps: int) -> int:
        """``num_sde_steps``, or all candidates."""
        return self.num_sde_steps or len(self.candidates(steps))

    def candidates(self, steps: int) -> tuple[int, ...]:
        """The steps that may be stochastic."""
        # the last step's noise would stay in the picture
        return tuple(range(max(1, steps - 1))) if self.sde_steps is None else self.sde_steps

    def window(self, steps: int, iteration: int, generator: torch.Generator) -> frozenset[int]:
        """``num_sde_steps`` of the candidates: drawn without replacement, or where the sliding window stands."""
        candidates = self.candidates(steps)
        size = self.num_sde_steps or len(candidates)
        if self.slide is None:
            return frozenset(candidates[i] for i in torch.randperm(len(candidates), generator=generator)[:size].tolist())
        last = len(candidates) - size
        places = [*range(0, last, self.slide.stride), last]  # the last stride may be shorter, so that no candidate is left out
        start = places[iteration // self.slide.every % len(places)]
        return frozenset(sorted(candidates)[start : start + size])


Window = Callable[[int, int, torch.Generator], frozenset[int]]


class SDE:
    """Noise of ``noise_level`` in the steps that ``window`` names, with a Gaussian density."""

    stochastic = True

    def __init__(self, noise_level: float, window: Window) -> None:
        self.noise_level = noise_level
        self.window = window

    def log_density(self, next_latents: Tensor, transition: Transition) -> Tensor:
        """[B]: mean over elements of the Gaussian's log-density."""
        return log_normal(next_latents, *transition)


NEAR_NOISE = 0.015
"""The share of clean latents, 1 - sigma, below which Flow-SDE may borrow that of the next sigma."""
LONGEST_STEP = 4
"""It does where the step is more than so many times as long as that share; those of shifted schedules are once or twice."""


class FlowSDEConfig(SDEConfig):
    """Flow-GRPO's SDE (arXiv:2505.05470, eq. 9): the ODE's marginals, with noise to explore."""

    known_as = ("sde", "flow-grpo", "euler-maruyama", "stochastic")

    noise_level: float = Field(0.7, gt=0, le=10, description="a in spread = a sqrt(sigma / (1 - sigma)); 0.7 in the paper")

    def build(self, label: str) -> FlowSDE:
        return FlowSDE(self.noise_level, self.window)


class FlowSDE(SDE):
    """dx = [v + spread²/(2 sigma) (x + (1 - sigma) v)] dsigma + spread dw, spread = a sqrt(sigma / (1 - sigma))."""

    def transition(self, velocity: Tensor, latents: Tensor, sigma: Tensor, next_sigma: Tensor) -> Transition:
        """Mean [B, ...] and standard deviation [B, 1...] of the next latents. arXiv:2505.05470, eq. 9.

        At sigma 1, where the spread is infinite, 1 - sigma is borrowed from the next sigma, as the authors' code does. So it is
        just below: in a first step from 0.999999, as diffusers' UniPC has it, the noise would be 200 times that of pure noise.
        """
        clean = 1 - sigma
        borrows = (clean < NEAR_NOISE) & (clean < (sigma - next_sigma) / LONGEST_STEP)
        spread = self.noise_level * torch.sqrt(sigma / torch.where(borrows, 1 - next_sigma, clean))
        return _sde(velocity, latents, sigma, next_sigma, spread)


class DanceSDEConfig(SDEConfig):
    """DanceGRPO's SDE (arXiv:2505.07818): the same spread at every sigma."""

    known_as = ("dance", "dance-grpo")

    noise_level: float = Field(0.3, gt=0, le=10, description="the spread; 0.3 in the paper")

    def build(self, label: str) -> DanceSDE:
        return DanceSDE(self.noise_level, self.window)


class DanceSDE(SDE):
    """dx = [v + spread²/(2 sigma) (x + (1 - sigma) v)] dsigma + spread dw, with a constant spread."""

    def transition(self, velocity: Tensor, latents: Tensor, sigma: Tensor, next_sigma: Tensor) -> Transition:
        """Mean [B, ...] and standard deviation [B, 1...] of the next latents. arXiv:2505.07818."""
        return _sde(velocity, latents, sigma, next_sigma, torch.full_like(sigma, self.noise_level))


def _sde(velocity: Tensor, latents: Tensor, sigma: Tensor, next_sigma: Tensor, spread: Tensor) -> Transition:
    """One Euler-Maruyama step of the SDE that has the ODE's marginals for any ``spread`` [B, 1...]."""
    dt = next_sigma - sigma
    drift = spread.square() / (2 * sigma)
    mean = latents * (1 + drift * dt) + velocity * (1 + drift * (1 - sigma)) * dt
    return Transition(mean, spread * torch.sqrt(-dt))


class CPSConfig(SDEConfig):
    """Coefficients-preserving sampling (arXiv:2509.05952): fresh noise takes the place of as much of the old."""

    known_as = ("coefficients-preserving", "flow-cps", "cps-sde")

    noise_level: float = Field(0.8, gt=0, le=1, description="eta in std = next sigma sin(eta pi / 2); 1 is all fresh noise")

    def check(self, run: RunConfig) -> None:
        """As for every SDE, and the last step, which arrives at sigma 0, has no noise."""
        super().check(run)
        last = run.sampling.steps - 1
        if last in self.candidates(run.sampling.steps):
            raise ValueError(
                f"sampling.dynamics.sde_steps: under cps the last step ({last}) arrives at sigma 0 without noise, so that it "
                "has no density to learn from; leave it out"
            )

    def build(self, label: str) -> CPS:
        return CPS(self.noise_level, self.window)


class CPS(SDE):
    """(1 - s') clean + sqrt(s'² - std²) noise + std fresh, clean and noise as the velocity has them."""

    def transition(self, velocity: Tensor, latents: Tensor, sigma: Tensor, next_sigma: Tensor) -> Transition:
        """Mean [B, ...] and standard deviation [B, 1...] of the next latents. arXiv:2509.05952."""
        clean, noise = latents - sigma * velocity, latents + (1 - sigma) * velocity
        angle = self.noise_level * math.pi / 2
        # sqrt(next² - std²), without the cancellation
        mean = (1 - next_sigma) * clean + next_sigma * math.cos(angle) * noise
        return Transition(mean, next_sigma * math.sin(angle))

    def log_density(self, next_latents: Tensor, transition: Transition) -> Tensor:
        """[B]: minus the mean squared error, the log-density up to its scale, as the authors' code has it."""
        return -(next_latents - transition.mean).square().flatten(1).mean(1)
