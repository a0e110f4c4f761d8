"""The learning bench: an algorithm on the two-parameter flow, whose losses and gradients can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowfactory.config.schema import AlgorithmConfig
from flowfactory.experience import Experience, Loss
from flowfactory.hooks.calls import Hooks
from flowfactory.policy.policy import Policy
from flowfactory.testing.model_bench import bench
from flowfactory.testing.two_parameter import TwoParameterConfig
from flowfactory.types import Dynamics, RunInfo


@dataclass(frozen=True)
class Learning:
    """An algorithm, the two-parameter flow and what it drew, so that losses and gradients can be worked out by hand."""

    hooks: Hooks
    policy: Policy
    experience: Experience

    def move_to(self, p: float, q: float) -> None:
        """Change the two weights, as an update would."""
        with torch.no_grad():
            self.policy.parameters["transformer.p"].fill_(p)
            self.policy.parameters["transformer.q"].fill_(q)
        self.policy.mark_changed()

    def losses(self) -> list[Loss]:
        """All losses of one update, each with its graph."""
        return list(self.hooks.update(self.experience, self.policy))

    def gradient(self, values: Tensor) -> Tensor:
        """Of the sum of ``values`` with respect to (p, q): float64 [2]."""
        weights = self.policy.parameters
        pair = (weights["transformer.p"], weights["transformer.q"])
        return torch.stack(torch.autograd.grad(values.sum(), pair, retain_graph=True)).double()


def learning(
    algorithm: AlgorithmConfig,
    advantages: Sequence[float],
    folder: Path,
    start: tuple[float, float] = (0.3, -0.2),
    group_size: int = 4,
    dynamics: Dynamics | None = None,
    batch_size: int = 8,
    timesteps_per_forward: int = 1,
) -> Learning:
    """``algorithm`` with what the flow at ``start`` drew: groups of ``group_size`` with ``advantages``, in 4 steps.

    ``folder`` is for the conditions.
    """
    made = bench(
        TwoParameterConfig(p=start[0], q=start[1]),
        folder,
        prompts=["a" * (1 + group) for group in range(len(advantages) // group_size)],
        group_size=group_size,
        dynamics=dynamics,
        others={"algorithm": algorithm.build("algorithm")},
    )
    made.hooks.run_started(RunInfo(folder, None, 1), made.policy)
    plan = made.hooks.plan(0, made.plan)
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
        timesteps_per_forward=timesteps_per_forward,
    )
    return Learning(made.hooks, made.policy, experience)
