"""GRPO and its relatives joined to the two-parameter flow, velocity = p x + q sigma, whose steps are worked out by hand."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import AlgorithmConfig, Step, testing
from flowfactory.flow.dynamics import CPSConfig, DanceSDEConfig, FlowSDEConfig
from flowfactory.testing import Learning, two_parameter
from flowfactory_grpo.grpo import GRPOConfig

START = (0.3, -0.2)
NOISE_LEVEL = 0.8
DYNAMICS: dict[str, Any] = {"flow-sde": FlowSDEConfig, "dance-sde": DanceSDEConfig, "cps": CPSConfig}

Weights = tuple[float, float]


class ByHand(ABC):
    """One recorded step x -> y, from sigma s to t, in float64: a Gaussian of some std.

    ``slope`` is how far the mean moves with the velocity, and ``steepness`` how fast the log-density falls with the
    square of an element's error.
    """

    std: float
    slope: float
    steepness: float
    constant: float

    def __init__(self, step: Step) -> None:
        assert step.next_latents is not None
        assert step.next_sigma is not None
        self.x, self.y = step.latents.double().flatten(1), step.next_latents.double().flatten(1)
        self.s, self.t = float(step.sigma[0]), float(step.next_sigma[0])

    @abstractmethod
    def mean(self, weights: Weights) -> Tensor: ...

    def velocity(self, weights: Weights) -> Tensor:
        return weights[0] * self.x + weights[1] * self.s

    def log_density(self, weights: Weights) -> Tensor:
        return (self.constant - self.steepness * (self.y - self.mean(weights)).square()).mean(1)

    def score(self, weights: Weights) -> Tensor:
        """[B, 2]: gradient of the log-density."""
        return self.by_weight(2 * self.steepness * (self.y - self.mean(weights)) * self.slope)

    def by_weight(self, elements: Tensor) -> Tensor:
        """[B, 2]: the mean over elements of a derivative by the velocity, times dv/dp = x and dv/dq = sigma."""
        return torch.stack([(elements * self.x).mean(1), (elements * self.s).mean(1)], dim=1)

    def divergence(self, form: str, weights: Weights, reference: Weights) -> tuple[Tensor, Tensor]:
        """[B] and its gradient [B, 2]."""
        if form == "velocity":
            apart = self.velocity(weights) - self.velocity(reference)
            return apart.square().mean(1), self.by_weight(2 * apart)
        apart = self.mean(weights) - self.mean(reference)
        return (apart.square() / (2 * self.std**2)).mean(1), self.by_weight(apart / self.std**2 * self.slope)


class SDE(ByHand):
    """dx = [v + g²/(2 s) (x + (1 - s) v)] ds + g dw: eq. 9 of arXiv:2505.05470, where g = a sqrt(s / (1 - s)), and
    arXiv:2505.07818, where g = a. The log-density is the Gaussian's."""

    def __init__(self, step: Step, name: str) -> None:
        super().__init__(step)
        clean = 1 - (self.t if self.s == 1 else self.s)  # sigma 1 borrows it from the next, as the authors' code does
        self.g = NOISE_LEVEL * (math.sqrt(self.s / clean) if name == "flow-sde" else 1.0)
        self.std = self.g * math.sqrt(self.s - self.t)
        self.slope = (1 + self.g**2 * (1 - self.s) / (2 * self.s)) * (self.t - self.s)
        self.steepness = 1 / (2 * self.std**2)
        self.constant = -math.log(2 * math.pi * self.std**2) / 2

    def mean(self, weights: Weights) -> Tensor:
        velocity = self.velocity(weights)
        drift = velocity + self.g**2 / (2 * self.s) * (self.x + (1 - self.s) * velocity)
        return self.x + drift * (self.t - self.s)


class CPS(ByHand):
    """(1 - t)(x - s v) + sqrt(t² - std²)(x + (1 - s) v), std = t sin(a pi / 2): arXiv:2509.05952. The log-density is
    minus the squared error."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.std = self.t * math.sin(NOISE_LEVEL * math.pi / 2)
        self.kept = math.sqrt(self.t**2 - self.std**2)
        self.slope = self.kept * (1 - self.s) - (1 - self.t) * self.s
        self.steepness, self.constant = 1.0, 0.0

    def mean(self, weights: Weights) -> Tensor:
        velocity = self.velocity(weights)
        return (1 - self.t) * (self.x - self.s * velocity) + self.kept * (self.x + (1 - self.s) * velocity)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))


Learn = Callable[..., Learning]


@pytest.fixture
def algorithm() -> type[AlgorithmConfig]:
    """What learns; a file or a test may put another in its place."""
    return GRPOConfig


@pytest.fixture
def dynamics() -> str:
    """What draws; a test may name others."""
    return "flow-sde"


@pytest.fixture
def learning(tmp_path: Path, algorithm: type[AlgorithmConfig], dynamics: str) -> Learn:
    """``learning(advantages, clip_range=…, kl=…)``: 8 samples of 4 steps, 3 of them stochastic, drawn at START."""

    def build(advantages: Sequence[float], batch_size: int = 8, timesteps_per_forward: int = 1, **options: Any) -> Learning:
        return testing.learning(
            algorithm.model_validate(options),
            advantages,
            tmp_path / "conditions",
            START,
            dynamics=DYNAMICS[dynamics](noise_level=NOISE_LEVEL).build("dynamics"),
            batch_size=batch_size,
            timesteps_per_forward=timesteps_per_forward,
        )

    return build


@pytest.fixture
def by_hand(dynamics: str) -> Callable[[Step], ByHand]:
    """A recorded step worked out by hand."""
    return CPS if dynamics == "cps" else lambda step: SDE(step, dynamics)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A config of three iterations of GRPO on the two-parameter flow, as a mapping."""
    window = {"name": "flow-sde", "sde_steps": [1, 2, 4], "num_sde_steps": 2}
    plugins = [two_parameter.FILE, str(Path(__file__).with_name("unstated.py"))]
    return two_parameter.settings(tmp_path, {"name": "grpo"}, sampling={"dynamics": window}) | {"plugins": plugins}


@pytest.fixture
def count() -> type[testing.ForwardCalls]:
    return testing.ForwardCalls
