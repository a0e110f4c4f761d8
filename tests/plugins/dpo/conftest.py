"""DPO and DGPO joined to the two-parameter flow: velocity = p x + q sigma, so that gradients can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import AlgorithmConfig, Experience, testing
from flowfactory.config.loading import validate
from flowfactory.flow.timesteps import NoisedBatch
from flowfactory.testing import ODE, Learning, two_parameter
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.setup import Run, prepare_run

START = (0.3, -0.2)
Weights = tuple[float, float]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and no other plugin, wherever the tests are run."""
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "dpo")


@pytest.fixture
def learning(tmp_path: Path) -> Callable[..., Learning]:
    """``learning(config, advantages)``: groups of 4 samples, the first's prompt one letter long, drawn at START."""

    def build(
        config: AlgorithmConfig, advantages: Sequence[float], batch_size: int = 12, timesteps_per_forward: int = 1
    ) -> Learning:
        return testing.learning(
            config,
            advantages,
            tmp_path / "conditions",
            START,
            dynamics=ODE(),
            batch_size=batch_size,
            timesteps_per_forward=timesteps_per_forward,
        )

    return build


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A config of three iterations of two updates on the two-parameter flow, as a mapping; it wants an algorithm."""
    return two_parameter.settings(
        tmp_path,
        {},
        model={"p": START[0], "q": START[1]},
        prompts={"negative": "seven l"},
        sampling={"groups": 3, "steps": 4},
        training={"updates": 2},
    )


@pytest.fixture
def drawn(settings: dict[str, Any]) -> Callable[..., tuple[Run, Experience]]:
    """``drawn(algorithm)``: a run on the flow that minds guidance, with what its first iteration drew under guidance 1."""

    def begin(algorithm: dict[str, Any]) -> tuple[Run, Experience]:
        settings["model"]["name"] = "guided"
        run = prepare_run(validate(settings | {"algorithm": algorithm}))
        run.assembly.hooks.run_started(run.info, run.policy)
        return run, collect_rollouts(run, 0, Timer(run.policy.device)).experience

    return begin


class ByHand:
    """Rows of places in float64: the error e = mean (v - (noise - clean))² of given weights (p, q), and its gradient.

    ``lengths`` [b] is what the flow that minds guidance multiplies sigma by.
    """

    def __init__(self, at: NoisedBatch, lengths: Tensor | float = 1.0) -> None:
        self.x, self.target = at.step.latents.double().flatten(1), at.target.double().flatten(1)
        self.sigma = (at.step.sigma.double() * lengths)[:, None]

    def velocity(self, weights: Weights) -> Tensor:
        return weights[0] * self.x + weights[1] * self.sigma

    def error(self, weights: Weights) -> Tensor:
        return (self.velocity(weights) - self.target).square().mean(1)

    def slope(self, weights: Weights) -> Tensor:
        """[b, 2]: the gradient of the error, dv/dp = x and dv/dq = sigma."""
        return self._by_weight(2 * (self.velocity(weights) - self.target))

    def divergence(self, weights: Weights, reference: Weights) -> tuple[Tensor, Tensor]:
        """Mean squared difference of the two velocities [b], and its gradient [b, 2]."""
        apart = self.velocity(weights) - self.velocity(reference)
        return apart.square().mean(1), self._by_weight(2 * apart)

    def _by_weight(self, elements: Tensor) -> Tensor:
        return torch.stack([(elements * self.x).mean(1), (elements * self.sigma).mean(1)], dim=1)


@pytest.fixture
def by_hand() -> type[ByHand]:
    return ByHand


@pytest.fixture
def count() -> type[testing.ForwardCalls]:
    return testing.ForwardCalls
