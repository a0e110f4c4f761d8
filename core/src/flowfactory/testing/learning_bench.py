"""The learning bench: an algorithm on the two-parameter flow, whose losses and gradients can be worked out by hand."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.config.component import AlgorithmConfig
from flowfactory.config.schema import TrainingConfig
from flowfactory.experience import Experience, Loss
from flowfactory.flow.dynamics import ODE
from flowfactory.flow.timesteps import NoisedBatch, Timesteps, noised_micro_batches
from flowfactory.hooks.building import build
from flowfactory.hooks.calls import Hooks
from flowfactory.hooks.manager import make_manager
from flowfactory.policy.policy import Policy
from flowfactory.testing.counters import ForwardCalls
from flowfactory.testing.model_bench import bench
from flowfactory.testing.two_parameter import TwoParameterConfig
from flowfactory.training.learner import Learner
from flowfactory.training.metrics import UpdateMetrics
from flowfactory.types import Dynamics, Index, RunInfo, SamplingPlan

Weights = tuple[float, float]
"""The two weights (p, q) of the flow p x + q sigma."""


@dataclass(frozen=True)
class Update:
    """What one optimizer step saw: the gradient [2] by (p, q), float64, its norm, and the metrics that core reports."""

    gradient: Tensor
    norm: float
    metrics: dict[str, float]


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

    def move_through(self, *weights: Weights) -> None:
        """Change the two weights as iterations would, of which each ends at one of ``weights`` and the last is under way."""
        for iteration, (p, q) in enumerate(weights):
            if iteration:
                self.policy.iteration_finished(iteration - 1)
            self.move_to(p, q)

    def weights(self, name: str | None = None) -> Weights:
        """(p, q) at present, or those kept under ``name``."""
        with self.policy.using(name):
            return self.policy.parameters["transformer.p"].item(), self.policy.parameters["transformer.q"].item()

    def with_advantages(self, advantages: Sequence[float]) -> Learning:
        """The same with other advantages, one a sample."""
        return replace(self, experience=replace(self.experience, advantages=torch.tensor(advantages)))

    def rows(self, index: Index) -> Learning:
        """The same with some of the samples."""
        return replace(self, experience=self.experience.rows(index))

    def losses(self) -> list[Loss]:
        """All losses of one update, each with its graph."""
        return list(self.hooks.update(self.experience, self.policy))

    def count_forwards(self) -> tuple[list[Loss], ForwardCalls]:
        """All losses of one update, and how often the flow was called for them."""
        calls = ForwardCalls(self.policy)
        return self.losses(), calls

    def noised_batches(self, timesteps: Timesteps, shared: bool = False) -> list[NoisedBatch]:
        """What an algorithm sees that goes over ``flow.noised_micro_batches``."""
        return list(noised_micro_batches(self.experience, timesteps, shared))

    def gradient(self, values: Tensor) -> Tensor:
        """Of the sum of ``values`` with respect to (p, q): float64 [2]."""
        weights = self.policy.parameters
        pair = (weights["transformer.p"], weights["transformer.q"])
        return torch.stack(torch.autograd.grad(values.sum(), pair, retain_graph=True)).double()

    def gradients(self, values: Tensor) -> Tensor:
        """Of each of ``values`` [b] with respect to (p, q): float64 [b, 2]."""
        return torch.stack([self.gradient(value) for value in values])

    def update(self, lr: float = 1e-4, steps: int = 1, max_grad_norm: float = 1e9) -> Update:
        """``steps`` optimizer steps on what was drawn; what the last one saw."""
        config = TrainingConfig.model_validate({"optimizer": {"lr": lr}, "max_grad_norm": max_grad_norm})
        learner = Learner(self.policy, config)
        for _ in range(steps):
            gathered = UpdateMetrics()
            norm = learner.backward(self.hooks.update(self.experience, self.policy), gathered)
            found = [self.policy.parameters[f"transformer.{name}"].grad for name in ("p", "q")]
            gradient = torch.stack([torch.zeros(()) if part is None else part for part in found]).double()
            learner.apply()
        return Update(gradient, norm, gathered.metrics())


def learning(
    algorithm: AlgorithmConfig,
    advantages: Sequence[float],
    start: Weights = (0.3, -0.2),
    group_size: int = 4,
    dynamics: Dynamics | None = None,
    batch_size: int = 8,
    timesteps_per_forward: int = 1,
) -> Learning:
    """``algorithm`` with what the flow at ``start`` drew: groups of ``group_size`` with ``advantages``, in 4 steps.

    The prompt of the first group has one letter, that of the second two, and so on.
    """
    with tempfile.TemporaryDirectory() as name:
        made = bench(
            TwoParameterConfig(p=start[0], q=start[1]),
            Path(name),
            prompts=["a" * (1 + group) for group in range(len(advantages) // group_size)],
            group_size=group_size,
            dynamics=dynamics,
            others={"algorithm": build(algorithm, "algorithm")},
        )
    made.hooks.run_started(RunInfo(Path(), None, 1), made.policy)
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


def make_plan(algorithm: AlgorithmConfig, **attributes: Any) -> SamplingPlan:
    """What ``algorithm`` makes of a plan of 4 steps of the ODE under guidance 1, with ``attributes`` set on top."""
    given = replace(SamplingPlan(4, Canvas(4, 4), 1.0, ODE(), 0, 0), **attributes)
    hooks = Hooks(make_manager({"algorithm": build(algorithm, "algorithm")}))
    return hooks.plan(0, given)
