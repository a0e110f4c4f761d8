"""AWM joined to the two-parameter flow: velocity = p x + q sigma, so that its gradients can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowfactory import testing
from flowfactory.testing import ODE, Learning, two_parameter
from flowfactory.types import Dynamics
from flowfactory_awm.awm import AWMConfig

START = (0.3, -0.2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))


Learn = Callable[..., Learning]


@pytest.fixture
def learning(tmp_path: Path) -> Learn:
    """``learning(advantages, weighting=…, kl=…)``: samples that the flow at START drew in 4 steps of the ODE."""

    def build(
        advantages: Sequence[float],
        batch_size: int = 8,
        timesteps_per_forward: int = 1,
        dynamics: Dynamics | None = None,
        **options: Any,
    ) -> Learning:
        return testing.learning(
            AWMConfig.model_validate(options),
            advantages,
            tmp_path / "conditions",
            START,
            dynamics=dynamics or ODE(),
            batch_size=batch_size,
            timesteps_per_forward=timesteps_per_forward,
        )

    return build


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A config of three iterations of two updates on the two-parameter flow, as a mapping."""
    return two_parameter.settings(tmp_path, {"name": "awm"}, training={"updates": 2, "batch_size": 3})


@pytest.fixture
def count() -> type[testing.ForwardCalls]:
    return testing.ForwardCalls
