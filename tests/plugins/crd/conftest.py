"""CRD joined to the two-parameter flow: velocity = p x + q sigma, so that its gradients can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowfactory import Experience, testing
from flowfactory.config.loading import validate
from flowfactory.testing import ODE, Learning, two_parameter
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.setup import Run, prepare_run
from flowfactory_crd.crd import CRDConfig

START = (0.3, -0.2)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and no other plugin, wherever the tests are run."""
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "crd")


@pytest.fixture
def learning(tmp_path: Path) -> Callable[..., Learning]:
    """``learning(config, advantages)``: groups of 4 samples drawn at START."""

    def build(
        config: CRDConfig,
        advantages: Sequence[float],
        batch_size: int = 12,
        timesteps_per_forward: int = 1,
        group_size: int = 4,
    ) -> Learning:
        return testing.learning(
            config,
            advantages,
            tmp_path / "conditions",
            START,
            group_size=group_size,
            dynamics=ODE(),
            batch_size=batch_size,
            timesteps_per_forward=timesteps_per_forward,
        )

    return build


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A config of three iterations of two updates of CRD on the two-parameter flow, as a mapping."""
    return two_parameter.settings(
        tmp_path,
        {"name": "crd"},
        model={"p": START[0], "q": START[1]},
        prompts={"negative": "seven l"},
        sampling={"groups": 3, "steps": 4},
        training={"updates": 2},
    )


@pytest.fixture
def drawn(settings: dict[str, Any]) -> Callable[..., tuple[Run, Experience]]:
    """``drawn(options)``: a run on the flow that minds guidance, with what its first iteration drew under guidance 1."""

    def begin(options: dict[str, Any]) -> tuple[Run, Experience]:
        settings["model"]["name"] = "guided"
        settings["algorithm"] |= options
        run = prepare_run(validate(settings))
        run.assembly.hooks.run_started(run.info, run.policy)
        return run, collect_rollouts(run, 0, Timer(run.policy.device)).experience

    return begin


@pytest.fixture
def count() -> type[testing.ForwardCalls]:
    return testing.ForwardCalls
