"""The rewards of a config: asked about the samples they apply to, each checked before anything learns from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowfactory.config.schema import ComponentConfig
from flowfactory.data.batches import rows_by_group
from flowfactory.distributed.partition import split_evenly
from flowfactory.errors import RunError
from flowfactory.rewards.component import RewardComponent, name_errors
from flowfactory.rewards.executors import WorkerProcesses, WorkerThread
from flowfactory.types import Answer, Samples


class Rewards:
    """The rewards of a config under its labels."""

    def __init__(self, configs: Mapping[str, ComponentConfig], plugins: Sequence[Path] = ()) -> None:
        self.labels = tuple(configs)
        self._executors = [RewardExecutor(label, config, plugins) for label, config in configs.items()]
        self._ready = False

    @property
    def pointwise(self) -> bool:
        """Whether all of them score each sample by itself."""
        return all(executor.pointwise for executor in self._executors)

    @property
    def concurrent(self) -> bool:
        """Whether any of them is computed beside the thread that asks."""
        return any(executor.runs_concurrently for executor in self._executors)

    def prepare(self, device: torch.device) -> None:
        """Have them read their weights and reach their servers, once. UserError, RunError: one cannot, under its label."""
        if not self._ready:
            for executor in self._executors:
                executor.prepare(device)
        self._ready = True

    def start(self, samples: Samples) -> PendingScores:
        """Ask all of them; what runs aside goes on after this returns. RunError: as :meth:`Scoring.result`."""
        self.prepare(samples.media.device)
        # those that run aside first, so that they do while the others hold this thread up
        order = sorted(self._executors, key=lambda executor: not executor.runs_concurrently)
        asked = {executor.label: executor.submit(samples) for executor in order}
        return PendingScores(len(samples.prompts), {label: asked[label] for label in self.labels})

    def __call__(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: scores [B]}``; as :meth:`Scoring.result`."""
        return self.start(samples).result()


@dataclass(frozen=True)
class PendingAnswers:
    """The rows that a reward was asked about, in pieces, and its answers, that may be on their way."""

    rows: Sequence[Sequence[int]]
    answers: Sequence[Answer | Future[Answer]]
    timeout: float | None


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


class RewardExecutor:
    """One reward: its component, here, in a thread or in processes of its own."""

    def __init__(self, label: str, config: ComponentConfig, plugins: Sequence[Path] = ()) -> None:
        self.label = label
        self._component = RewardComponent(label, config)
        self.pointwise = self._component.pointwise
        self._timeout: float | None = getattr(config, "timeout", None)
        workers: int = getattr(config, "workers", 0)
        self._workers = WorkerProcesses(label, config, workers, plugins) if workers else None
        wanted = getattr(config, "concurrent", None)
        concurrent = self._component.concurrent if wanted is None else bool(wanted)
        self.runs_concurrently = concurrent or bool(workers)
        # without a thread of its own, what never answers could not be given up
        self._thread = WorkerThread(label) if not workers and (concurrent or self._timeout is not None) else None

    def prepare(self, device: torch.device) -> None:
        """See RunSpecs.prepare_reward."""
        with name_errors(self.label):
            if self._workers:
                self._workers.start()
            else:
                self._component.prepare(device)

    def submit(self, samples: Samples) -> PendingAnswers:
        """Begin with the samples that the label applies to."""
        rows = [i for i, metadata in enumerate(samples.metadata) if applies(self.label, metadata)]
        if not rows:
            return PendingAnswers([], [], self._timeout)
        if self._workers:
            units = [[row] for row in rows] if self.pointwise else rows_by_group(rows, samples.groups)
            pieces = [piece for piece in split_evenly(units, len(self._workers)) if piece]
            return PendingAnswers(pieces, [self._workers.submit(samples.rows(piece)) for piece in pieces], self._timeout)
        mine = samples if len(rows) == len(samples.prompts) else samples.rows(rows)
        with name_errors(self.label):
            answer = self._thread.submit(self._component.compute, mine) if self._thread else self._component.compute(mine)
            return PendingAnswers([rows], [answer if self.runs_concurrently else _wait(answer, self._timeout)], self._timeout)


def applies(label: str, metadata: Mapping[str, Any]) -> bool:
    """Whether a prompt is judged by the reward ``label``: where its metadata lists ``rewards``, those alone."""
    return label in metadata["rewards"] if "rewards" in metadata else True


def _check_answer(label: str, answer: Answer | Future[Answer], rows: Sequence[int], timeout: float | None) -> Tensor:
    answered: Any = _wait(answer, timeout)
    if not isinstance(answered, Mapping):
        raise RunError(f"answered {type(answered).__name__}; expected a mapping from its label to scores")
    if others := [name for name in answered if name != label]:
        raise RunError(f"answered under {others[0]!r}; each answers once, under the label it was built with")
    if label not in answered:
        raise RunError("gave no scores")
    value = answered[label]
    score = _wait(value, timeout)
    if not isinstance(score, Tensor) or score.shape != (len(rows),):
        got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise RunError(f"gave {got}; expected a tensor [{len(rows)}], one score a sample")
    if not score.isfinite().all():
        first = int((~score.isfinite()).nonzero()[0])
        raise RunError(f"gave {float(score[first])} for sample {rows[first]}; scores must be finite")
    return score.detach().float().cpu()


def _wait(value: Any, timeout: float | None) -> Any:
    if not isinstance(value, Future):
        return value
    if not wait([value], timeout).done:
        raise RunError(f"no scores within {timeout:g} seconds; raise its timeout, or look at what holds it up")
    return value.result()
