"""The hooks of one run, typed, and the managers behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy
import torch
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.errors import UserError
from flowfactory.hooks.specs import PROJECT, RunSpecs
from flowfactory.types import (
    Conditions,
    Evaluation,
    Experience,
    Loss,
    Prompt,
    RunInfo,
    Runtime,
    SamplingPlan,
    Step,
    Trainable,
    Trajectory,
)

if TYPE_CHECKING:
    from flowfactory.policy.policy import Policy

EXACTLY_ONE = {"load": "model", "encode": "model", "sample": "model", "log_prob": "model", "update": "algorithm"}


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


def manager_of(components: Mapping[str, object]) -> pluggy.PluginManager:
    """A fresh manager that holds just ``components`` under their labels. UserError: one does not fit the hook specs."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RunSpecs)
    for label, component in components.items():
        try:
            manager.register(component, label)
        except ValueError as error:
            told = " ".join(str(error).split())
            raise UserError(f"{label}: {told}; components must compare by identity, as plain classes do") from error
        except pluggy.PluginValidationError as error:
            raise UserError(f"{label}: {' '.join(str(error).split())}") from error
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise UserError(f"{' '.join(str(error).split())}; there is no such hook, see flowfactory.hooks.specs") from error
    return manager


def insist(manager: pluggy.PluginManager, owner: str, hook: str) -> None:
    """UserError unless ``owner`` implements ``hook``, and where one is wanted nobody else does."""
    implementations = [
        implementation.plugin_name
        for implementation in getattr(manager.hook, hook).get_hookimpls()
        if not (implementation.wrapper or implementation.hookwrapper)
    ]
    if owner not in implementations:
        kind = type(manager.get_plugin(owner)).__name__
        raise UserError(f"{owner}: {kind} does not implement {hook}; write the method and mark it with @hookimpl")
    if hook in EXACTLY_ONE and len(implementations) > 1:
        others = ", ".join(name for name in implementations if name != owner)
        raise UserError(f"{hook} is implemented by {owner} and by {others}; exactly one may, others wrap (wrapper=True)")
