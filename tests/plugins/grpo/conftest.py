"""GRPO joined to the two-parameter flow: velocity = p x + q sigma, so that its gradients can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowfactory import Policy, testing
from flowfactory.dynamics import FlowSDEConfig
from flowfactory.testing import Learning
from flowfactory_grpo.grpo import GRPOConfig

START = (0.3, -0.2)
NOISE_LEVEL = 0.8


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))


Learn = Callable[..., Learning]


@pytest.fixture
def learning(tmp_path: Path) -> Learn:
    """``learning(advantages, clip_range=…, kl=…)``: 8 samples of 4 steps, 3 of them stochastic, drawn at START."""

    def build(advantages: Sequence[float], batch_size: int = 8, **options: Any) -> Learning:
        dynamics = FlowSDEConfig(noise_level=NOISE_LEVEL).build("dynamics")
        algorithm = GRPOConfig.model_validate(options)
        return testing.learning(algorithm, advantages, tmp_path / "conditions", START, dynamics=dynamics, batch_size=batch_size)

    return build


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A config of three iterations of GRPO on the two-parameter flow, as a mapping."""
    (tmp_path / "train.txt").write_text("a\nbb\nccc\n")
    return {
        "model": "two-parameter",
        "algorithm": {"name": "grpo"},
        "rewards": {"light": "bright"},
        "prompts": {"train": str(tmp_path / "train.txt")},
        "sampling": {
            "groups": 2,
            "group_size": 4,
            "size": [4, 4],
            "steps": 6,
            "batch_size": 8,
            "dynamics": {"name": "flow-sde", "sde_steps": [1, 2, 4], "num_sde_steps": 2},
        },
        "training": {"iterations": 3, "batch_size": 4, "optimizer": {"lr": 0.02}},
        "output": {"dir": str(tmp_path / "run")},
        "plugins": [str(Path(__file__).with_name("two_parameter.py"))],
        "device": "cpu",
    }


class Count:
    """Counts forwards of a policy's module."""

    def __init__(self, policy: Policy) -> None:
        self.forwards = 0
        policy.modules["transformer"].register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.forwards += 1


@pytest.fixture
def count() -> type[Count]:
    return Count
