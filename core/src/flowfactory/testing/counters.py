"""Counts of transformer forwards and backwards."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from flowfactory.discovery.specs import hookimpl
from flowfactory.policy.policy import Policy
from flowfactory.policy.velocity_sizes import VelocitySizes
from flowfactory.types import HELD_OUT, SamplingPlan


class ForwardCalls:
    """How often the transformers of a policy are called, how often with a graph, and the ``rows`` of each call."""

    def __init__(self, policy: Policy) -> None:
        self.forwards = self.graphs = 0
        self.rows: list[int] = []
        for module in policy.modules.values():
            module.register_forward_hook(self._count)

    def _count(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.forwards += 1
        self.rows.append(len(output))
        self.graphs += torch.is_grad_enabled()


class ForwardCount:
    """An observer of a run that counts transformer forwards and backwards, in samples: guidance above 1 counts twice.

    ``iterations`` holds a mapping for each record of the run, the one before training first: "sample" to draw, "evaluation",
    "train" to update, differentiably, "no_grad" to update otherwise, and "backward". Preflight's are the first iteration's.
    What the metric ``velocity_norm`` takes is under "velocity".
    """

    def __init__(self) -> None:
        self.iterations: list[dict[str, int]] = []
        self._rows: Counter[str] = Counter()
        self._phase: str | None = None
        self._sizes: VelocitySizes | None = None

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        """Listen to the transformers."""
        self._sizes = policy.velocity_sizes
        for module in policy.modules.values():
            module.register_forward_hook(self._forward, with_kwargs=True)

    @hookimpl(wrapper=True)
    def sample(self, plan: SamplingPlan) -> Any:
        """Tell drawing from updating."""
        self._phase = "evaluation" if plan.iteration == HELD_OUT else "sample"
        try:
            return (yield)
        finally:
            self._phase = None

    @hookimpl
    def iteration_finished(self, iteration: int) -> None:
        """Begin anew; what was drawn and checked before the evaluation before training is the first iteration's."""
        later = {phase: rows for phase, rows in self._rows.items() if iteration == 0 and phase != "evaluation"}
        self.iterations.append({phase: rows for phase, rows in self._rows.items() if phase not in later})
        self._rows = Counter(later)

    def _forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        rows = len(args[0] if args else next(iter(kwargs.values())))
        result = output[0] if isinstance(output, tuple) else output
        result = result[0] if isinstance(result, list) else result  # a tensor a sample, which share one backward
        measuring = self._sizes is not None and self._sizes.measuring
        phase = self._phase or ("velocity" if measuring else "train" if torch.is_grad_enabled() else "no_grad")
        self._rows[phase] += rows
        if phase == "train":
            result.register_hook(lambda _: self._rows.update(backward=rows))
