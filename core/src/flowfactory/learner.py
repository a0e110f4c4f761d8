"""Losses to optimizer steps: backward, accumulate, clip, step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from flowfactory.config import TrainingConfig
from flowfactory.errors import RunError
from flowfactory.policy import Policy
from flowfactory.types import Loss


class Learner:
    """Owner of the optimizer."""

    def __init__(self, policy: Policy, config: TrainingConfig) -> None:
        self._policy = policy
        self._parameters = policy.parameters
        options = config.optimizer.model_dump(exclude={"name"})
        self._optimizer = torch.optim.AdamW(self._parameters.values(), **options)
        self._config = config
        self._steps = 0

    def step(self, losses: Iterable[Loss], gathered: Gathered) -> float:
        """The gradient's norm, after one optimizer step along the mean of all ``losses``; their metrics go to ``gathered``.

        RunError: a loss or the gradient is not finite, or nothing was yielded. No step is skipped in silence.
        """
        self._optimizer.zero_grad(set_to_none=True)
        before = gathered.count
        for loss in losses:
            gathered.add(loss)
            if loss.values.requires_grad or not self._policy.has_experts:  # samples may all be a frozen expert's
                loss.values.sum().backward()  # type: ignore[no-untyped-call]
        count = gathered.count - before
        if not count:
            raise RunError("the algorithm yielded no loss, so that nothing would train")
        # dividing afterwards gives the exact mean whatever the sizes of the pieces
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        if gradients:
            torch._foreach_div_(gradients, count)
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):  # before clipping, which would spread a NaN to every weight
            bad = [name for name, p in self._parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
            raise RunError(f"the gradient of {bad[0]} is not finite ({len(bad)} of {len(self._parameters)} weights)")
        torch.nn.utils.clip_grads_with_norm_(self._parameters.values(), self._config.max_grad_norm, norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.optimizer.lr * self._schedule()
        self._optimizer.step()
        self._policy.changed()
        self._steps += 1
        return float(norm)

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def _schedule(self) -> float:
        config = self._config
        total = max(1, config.iterations * config.epochs * config.updates - config.warmup)
        if self._steps < config.warmup:
            return (self._steps + 1) / config.warmup
        done = min(1.0, (self._steps - config.warmup) / total)
        match config.decay:
            case "constant":
                return 1.0
            case "linear":
                return 1.0 - done
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * done))

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and the number of steps."""
        return {"optimizer": self._optimizer.state_dict(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._steps = state["steps"]


class Gathered:
    """Means and maxima over the losses of an update."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._maxima: dict[str, float] = {}

    def add(self, loss: Loss) -> None:
        """Take in one loss. RunError: it is not finite."""
        if loss.values.dim() != 1:
            raise RunError(f"a loss has shape {list(loss.values.shape)}; yield one value a sample, [b]")
        if not loss.values.isfinite().all():
            terms = [name for name, term in loss.terms.items() if not term.isfinite().all()]
            raise RunError("the loss is not finite" + (f": its term {terms[0]!r} is not" if terms else ""))
        self.count += len(loss.values)
        for name, value in {"loss": loss.values, **loss.terms, **loss.metrics}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach().double().sum())
            self._counts[name] = self._counts.get(name, 0) + len(value)
        for name, value in loss.extremes.items():
            self._maxima[name] = max(self._maxima.get(name, -math.inf), float(value.detach().max()))

    def metrics(self) -> dict[str, float]:
        """The mean of every metric, the maximum of every extreme."""
        return {name: total / self._counts[name] for name, total in self._sums.items()} | self._maxima
