"""A model on the CPU with its policy, sampler and plan, ready to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from flowfactory import flow
from flowfactory.canvas import Canvas
from flowfactory.config.component import ModelConfig
from flowfactory.data.batches import Batch, make_batch
from flowfactory.data.cache_folder import CacheFolder
from flowfactory.data.encode_cache import EncodeCache
from flowfactory.flow.dynamics import FlowSDEConfig
from flowfactory.hooks.building import build
from flowfactory.hooks.calls import Hooks
from flowfactory.hooks.manager import make_manager
from flowfactory.policy.policy import Policy
from flowfactory.training.sampler import Sampler
from flowfactory.types import Conditions, Dynamics, Prompt, Runtime, SamplingPlan, Trainable, Trajectory

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Bench:
    """A model with its policy, sampler and plan, ready to draw; ``negative``: of prompts that have none of their own."""

    hooks: Hooks
    policy: Policy
    sampler: Sampler
    batch: Batch
    plan: SamplingPlan
    conditions: Conditions
    entries: int
    trainable: Trainable
    negative: str = ""

    def draw(self, batch_size: int) -> Trajectory:
        """The whole plan, ``batch_size`` at once."""
        return self.sampler.draw(self.conditions, self.plan, batch_size)


def bench(
    model: ModelConfig,
    folder: Path,
    prompts: Sequence[str | Prompt] = ("a", "bb"),
    size: tuple[int, ...] = (4, 4),
    steps: int = 4,
    guidance: float = 1.0,
    group_size: int = 4,
    dynamics: Dynamics | None = None,
    others: Mapping[str, object] | None = None,
    negative: str = "",
    precision: torch.dtype = torch.float32,
) -> Bench:
    """``model`` on the CPU, its conditions cached in ``folder``, with a plan that records every stochastic step.

    ``size`` is height, width and, for videos, frames. ``others`` are components that share its hooks, such as an algorithm
    that wraps ``sample``.
    """
    hooks = Hooks(make_manager({"model": build(model, "model"), **(others or {})}))
    trainable = hooks.load(Runtime(CPU, precision))
    policy = Policy(trainable, hooks.log_prob, CPU, precision)
    cache = EncodeCache(hooks.encode, trainable.encoding, CacheFolder(folder), CPU, trainable.canvas_matters)
    sampler = Sampler(hooks, policy, cache, trainable, negative)
    told = [prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in prompts]
    batch = make_batch([replace(prompt, index=index) for index, prompt in enumerate(told)], group_size)
    chosen = dynamics or FlowSDEConfig().build("dynamics")
    window = chosen.window(steps, 0, flow.generator("window"))
    plan = SamplingPlan(steps, Canvas(*size), guidance, chosen, 0, 0, batch.keys, window, window)
    encoded = cache.prepare(batch.prompts, plan.canvas)
    conditions = sampler.conditions(batch.prompts, guidance, plan.canvas)
    return Bench(hooks, policy, sampler, batch, plan, conditions, encoded, trainable, negative)
