"""The hooks of one run, typed, and the managers behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy
import torch
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.experience import Experience, Loss
from flowfactory.types import Conditions, Evaluation, Prompt, RunInfo, Runtime, SamplingPlan, Step, Trainable, Trajectory

if TYPE_CHECKING:
    from flowfactory.policy.policy import Policy


class Hooks:
    """The hooks of one run, typed."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._hook: Any = manager.hook

    def load(self, runtime: Runtime) -> Trainable:
        """See RunSpecs.load."""
        result: Trainable = self._hook.load(runtime=runtime)
        return result

    def encode(self, prompts: Sequence[Prompt], canvas: Canvas) -> Iterable[Mapping[str, Tensor]]:
        """See RunSpecs.encode."""
        result: Iterable[Mapping[str, Tensor]] = self._hook.encode(prompts=prompts, canvas=canvas)
        return result

    def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
        """See RunSpecs.sample."""
        with torch.no_grad():
            result: Trajectory = self._hook.sample(conditions=conditions, plan=plan)
        return result

    def log_prob(self, step: Step) -> Evaluation:
        """See RunSpecs.log_prob."""
        result: Evaluation = self._hook.log_prob(step=step)
        return result

    def plan(self, iteration: int, plan: SamplingPlan) -> SamplingPlan:
        """See RunSpecs.plan; ``plan`` itself where no algorithm changes it."""
        changed: SamplingPlan | None = self._hook.plan(iteration=iteration, plan=plan)
        return plan if changed is None else changed

    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """See RunSpecs.update."""
        result: Iterator[Loss] = self._hook.update(experience=experience, policy=policy)
        return result

    def run_started(self, run: RunInfo, policy: Policy) -> None:
        """See RunSpecs.run_started."""
        self._hook.run_started(run=run, policy=policy)

    def iteration_finished(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """See RunSpecs.iteration_finished."""
        self._hook.iteration_finished(iteration=iteration, metrics=metrics)

    def checkpoint_saved(self, iteration: int, path: Path) -> None:
        """See RunSpecs.checkpoint_saved."""
        self._hook.checkpoint_saved(iteration=iteration, path=path)

    def run_finished(self, run: RunInfo) -> None:
        """See RunSpecs.run_finished."""
        self._hook.run_finished(run=run)
