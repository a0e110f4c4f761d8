"""The rewards of a config: asked about the samples they apply to, each checked before anything learns from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowfactory.config.component import ComponentConfig
from flowfactory.errors import RunError
from flowfactory.rewards.errors import name_errors
from flowfactory.rewards.executors import PendingAnswers, RewardExecutor, wait_for
from flowfactory.types import Answer, Samples


class Rewards:
    """The rewards of a config under its labels."""

    def __init__(self, configs: Mapping[str, ComponentConfig], plugins: Sequence[Path] = ()) -> None:
        self.labels = tuple(configs)
        self._executors = [RewardExecutor(label, config, plugins) for label, config in configs.items()]

    @property
    def pointwise(self) -> bool:
        """Whether all of them score each sample by itself."""
        return all(executor.pointwise for executor in self._executors)

    @property
    def concurrent(self) -> bool:
        """Whether any of them is computed beside the thread that asks."""
        return any(executor.runs_concurrently for executor in self._executors)

    def prepare(self, device: torch.device, weights: bool = True) -> None:
        """Have them read their weights and reach their servers, once. UserError, RunError: one cannot, under its label.

        Without ``weights``, only those that hold none.
        """
        for executor in self._executors:
            if weights or not executor.holds_weights:
                executor.prepare(device)

    def start(self, samples: Samples) -> PendingScores:
        """Ask all of them; what runs aside goes on after this returns. RunError: as :meth:`PendingScores.result`."""
        self.prepare(samples.media.device)
        # those that run aside first, so that they do while the others hold this thread up
        order = sorted(self._executors, key=lambda executor: not executor.runs_concurrently)
        asked = {executor.label: executor.submit(samples) for executor in order}
        return PendingScores(len(samples.prompts), {label: asked[label] for label in self.labels})

    def __call__(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: scores [B]}``; as :meth:`PendingScores.result`."""
        return self.start(samples).result()


@dataclass(frozen=True)
class PendingScores:
    """The scores of ``count`` samples, some of which may be on their way."""

    count: int
    asked: Mapping[str, PendingAnswers]

    def result(self) -> dict[str, Tensor]:
        """``{label: scores [B]}``, float32, on the CPU; NaN where a label does not apply to a sample's prompt.

        RunError, which names the label: a reward raised, took too long, or its answer is off.
        """
        return {label: self._scores(label, asked) for label, asked in self.asked.items()}

    def _scores(self, label: str, asked: PendingAnswers) -> Tensor:
        scores = torch.full((self.count,), math.nan)
        with name_errors(label):
            for rows, answer in zip(asked.rows, asked.answers, strict=True):
                scores[list(rows)] = _check_answer(label, answer, rows, asked.timeout)
        return scores


def _check_answer(label: str, answer: Answer | Future[Answer], rows: Sequence[int], timeout: float | None) -> Tensor:
    answered: Any = wait_for(answer, timeout)
    if not isinstance(answered, Mapping):
        raise RunError(f"answered {type(answered).__name__}; expected a mapping from its label to scores")
    if others := [name for name in answered if name != label]:
        raise RunError(f"answered under {others[0]!r}; each answers once, under the label it was built with")
    if label not in answered:
        raise RunError("gave no scores")
    value = answered[label]
    score = wait_for(value, timeout)
    if not isinstance(score, Tensor) or score.shape != (len(rows),):
        got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise RunError(f"gave {got}; expected a tensor [{len(rows)}], one score a sample")
    if not score.isfinite().all():
        first = int((~score.isfinite()).nonzero()[0])
        raise RunError(f"gave {float(score[first])} for sample {rows[first]}; scores must be finite")
    return score.detach().float().cpu()
