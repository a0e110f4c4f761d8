"""GRPO joined to the two-parameter flow: velocity = p x + q sigma, so that its gradients can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import Experience, Loss, Policy, RunInfo
from flowfactory.assembly import Hooks
from flowfactory.dynamics import FlowSDEConfig
from flowfactory.testing import TwoParameterConfig, bench
from flowfactory_grpo.grpo import GRPOConfig

START = (0.3, -0.2)
NOISE_LEVEL = 0.8


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))


@dataclass(frozen=True)
class Learning:
    """An algorithm, a policy and what was drawn with it at START."""

    hooks: Hooks
    policy: Policy
    experience: Experience

    def move_to(self, p: float, q: float) -> None:
        """Change the weights, as an update would."""
        with torch.no_grad():
            self.policy.parameters["transformer.p"].fill_(p)
            self.policy.parameters["transformer.q"].fill_(q)
        self.policy.changed()

    def losses(self) -> list[Loss]:
        return list(self.hooks.update(self.experience, self.policy))

    def gradient(self, values: Tensor) -> Tensor:
        """With respect to (p, q), float64 [2]."""
        weights = self.policy.parameters
        pair = (weights["transformer.p"], weights["transformer.q"])
        return torch.stack(torch.autograd.grad(values.sum(), pair, retain_graph=True)).double()


Learn = Callable[..., Learning]


@pytest.fixture
def learning(tmp_path: Path) -> Learn:
    """``learning(advantages, clip_range=…, kl=…)``: 8 samples of 4 steps, 3 of them stochastic, drawn at START."""

    def build(advantages: Sequence[float], batch_size: int = 8, **options: Any) -> Learning:
        dynamics = FlowSDEConfig(noise_level=NOISE_LEVEL, sde_steps=None, num_sde_steps=None).build("dynamics")
        others = {"algorithm": GRPOConfig.model_validate(options).build("algorithm")}
        start = TwoParameterConfig(p=START[0], q=START[1])
        made = bench(start, tmp_path / "conditions", dynamics=dynamics, others=others)
        hooks = made.hooks
        hooks.run_started(RunInfo(tmp_path, None, 1), made.policy)
        plan = hooks.plan(0, made.plan)
        drawn = made.sampler.draw(made.conditions, plan, len(plan.keys))
        experience = Experience(
            latents=drawn.latents,
            steps=drawn.steps,
            conditions=made.conditions,
            plan=plan,
            rewards={},
            advantages=torch.tensor(advantages),
            groups=made.batch.groups,
            sigmas=drawn.sigmas,
            batch_size=batch_size,
        )
        return Learning(hooks, made.policy, experience)

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
