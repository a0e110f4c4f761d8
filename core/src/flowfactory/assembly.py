"""A config to the typed hooks of one run; fails before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy
import torch
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.config import ComponentConfig, RunConfig
from flowfactory.errors import RunError, UserError
from flowfactory.hookspecs import PROJECT, RunSpecs
from flowfactory.types import (
    Conditions,
    Dynamics,
    Evaluation,
    Experience,
    Loss,
    Prompt,
    RunInfo,
    Runtime,
    Samples,
    SamplingPlan,
    Step,
    Trainable,
    Trajectory,
)

if TYPE_CHECKING:
    from flowfactory.policy import Policy

EXACTLY_ONE = {"load": "model", "encode": "model", "sample": "model", "log_prob": "model", "update": "algorithm"}


class Rewards:
    """The rewards of a config under its labels, each checked before anything learns from it."""

    def __init__(self, configs: Mapping[str, ComponentConfig]) -> None:
        self.labels = tuple(configs)
        self._manager = manager_of({label: config.build(label) for label, config in configs.items()})
        for label in self.labels:
            _insist(self._manager, label, "compute_reward")

    def __call__(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: scores [B]}``, float32, on the CPU. RunError: a label is missing or unknown, or a score is off."""
        scores: dict[str, Tensor] = {}
        for answer in self._manager.hook.compute_reward(samples=samples):
            for label, value in answer.items():
                if label not in self.labels or label in scores:
                    raise RunError(f"a reward answered under {label!r}; each answers once, under the label it was built with")
                scores[label] = _checked(label, value, len(samples.prompts))
        if missing := [label for label in self.labels if label not in scores]:
            raise RunError(f"reward {missing[0]!r} gave no scores")
        return {label: scores[label] for label in self.labels}


def _checked(label: str, value: Tensor | Future[Tensor], count: int) -> Tensor:
    score = value.result() if isinstance(value, Future) else value
    if not isinstance(score, Tensor) or score.shape != (count,):
        got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise RunError(f"reward {label!r} gave {got}; expected a tensor [{count}], one score a sample")
    if not score.isfinite().all():
        first = int((~score.isfinite()).nonzero()[0])
        raise RunError(f"reward {label!r} gave {float(score[first])} for sample {first}; scores must be finite")
    return score.detach().float().cpu()


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


class Assembly:
    """All components of a config, built and joined: hooks, dynamics, training and evaluation rewards."""

    def __init__(self, config: RunConfig, observers: Iterable[object] = (), trackers: bool = True) -> None:
        components: dict[str, object] = {
            "model": config.model.build("model"),
            "algorithm": config.algorithm.build("algorithm"),
        }
        if trackers:
            components |= {f"tracker {i}": t.build(f"tracker {i}") for i, t in enumerate(config.output.trackers)}
        components |= {f"observer {i}": observer for i, observer in enumerate(observers)}
        manager = manager_of(components)
        for hook, owner in EXACTLY_ONE.items():
            _insist(manager, owner, hook)
        self.hooks = Hooks(manager)
        dynamics: Any = config.sampling.dynamics.build("dynamics")
        ode: Any = _ode()
        self.dynamics: Dynamics = dynamics
        self.ode: Dynamics = ode
        self.rewards = Rewards(config.rewards)
        self.evaluation_rewards = Rewards(config.evaluation.rewards) if config.evaluation.rewards else self.rewards


def _ode() -> Dynamics:
    from flowfactory.dynamics import ODE

    return ODE()


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
        raise UserError(f"{' '.join(str(error).split())}; there is no such hook, see flowfactory.hookspecs") from error
    return manager


def _insist(manager: pluggy.PluginManager, owner: str, hook: str) -> None:
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
