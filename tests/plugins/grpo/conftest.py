"""GRPO and its relatives on the two-parameter flow, whichever dynamics draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from flowfactory import AlgorithmConfig, testing
from flowfactory.flow.dynamics import CPSConfig, DanceSDEConfig, FlowSDEConfig
from flowfactory.testing import Learning
from flowfactory_grpo.grpo import GRPOConfig

DYNAMICS: dict[str, Any] = {"flow-sde": FlowSDEConfig, "dance-sde": DanceSDEConfig, "cps": CPSConfig}
NOISE_LEVEL = 0.8


@pytest.fixture
def algorithm() -> type[AlgorithmConfig]:
    """What learns; a file or a test may put another in its place."""
    return GRPOConfig


@pytest.fixture
def dynamics() -> str:
    """What draws; a test may name others."""
    return "flow-sde"


@pytest.fixture
def learn(algorithm: type[AlgorithmConfig], dynamics: str) -> Callable[..., Learning]:
    """``learn(advantages, 3, 1, clip_range=…)``: 8 samples of 4 steps, 3 of them stochastic, and the shape of a forward."""

    def make(advantages: Sequence[float], *shape: int, **options: Any) -> Learning:
        chosen = DYNAMICS[dynamics](noise_level=NOISE_LEVEL).build("dynamics")
        return testing.learning(algorithm.model_validate(options), advantages, (0.3, -0.2), 4, chosen, *shape)

    return make


@pytest.fixture
def by_hand(dynamics: str) -> Any:
    """A recorded step worked out by hand."""
    return partial(testing.step_by_hand, dynamics=dynamics, noise_level=NOISE_LEVEL)
