"""The rewards of a config: asked about the samples they apply to, each checked before anything learns from it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowfactory.config.component import ComponentConfig
from flowfactory.errors import RunError
from flowfactory.rewards.errors import name_errors
from flowfactory.rewards.executors import PendingAnswers, RewardExecutor, is_there, wait_for
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
    def pointwise_labels(self) -> tuple[str, ...]:
        """The labels of those that score each sample by itself."""
        return tuple(executor.label for executor in self._executors if executor.pointwise)

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
        asked = {
            label: pending.asked[label] for _, pending in self.start_each([(self.labels, samples)]) for label in pending.asked
        }
        return PendingScores(len(samples.prompts), {label: asked[label] for label in self.labels})

    def start_each(self, questions: Sequence[tuple[Collection[str], Samples]]) -> list[tuple[int, PendingScores]]:
        """Ask of each of ``questions`` the rewards that it names; the place of each question, and one reward's scores.

        RunError: as :meth:`PendingScores.result`.
        """
        named = [(i, each) for i, (labels, _) in enumerate(questions) for each in self._executors if each.label in labels]
        # those that run aside first, so that they do while the others hold this thread up
        named.sort(key=lambda pair: not pair[1].runs_concurrently)
        found = []
        for place, executor in named:
            samples = questions[place][1]
            self.prepare(samples.media.device)
            found.append((place, PendingScores(len(samples.prompts), {executor.label: executor.submit(samples)})))
        return found

    def __call__(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: scores [B]}``; as :meth:`PendingScores.result`."""
        return self.start(samples).result()


@dataclass(frozen=True)
class PendingScores:
    """The scores of ``count`` samples, some of which may be on their way."""

    count: int
    asked: Mapping[str, PendingAnswers]

    def done(self) -> bool:
        """Whether nothing is on its way any more."""
        return all(is_there(answer) for asked in self.asked.values() for answer in asked.answers)

    def result(self) -> dict[str, Tensor]:
        """``{label: scores [B]}`` on the CPU, in the dtype they came in; NaN where a label does not apply to a sample's prompt.

        RunError, which names the label: a reward raised, took too long, or its answer is off.
        """
        return {label: self._scores(label, asked) for label, asked in self.asked.items()}

    def _scores(self, label: str, asked: PendingAnswers) -> Tensor:
        with name_errors(label):
            pairs = zip(asked.rows, asked.answers, strict=True)
            found = [_check_answer(label, answer, rows, asked.timeout) for rows, answer in pairs]
        scores = torch.full((self.count,), math.nan, dtype=_joint_dtype(found))
        for rows, some in zip(asked.rows, found, strict=True):
            scores[list(rows)] = some.to(scores.dtype)
        return scores


def merge_scores(
    labels: Sequence[str], count: int, pieces: Sequence[tuple[Sequence[int], Mapping[str, Tensor]]]
) -> dict[str, Tensor]:
    """{label: scores [count]} of ``labels``, of ``pieces``: each has the scores of some labels for the samples that it names.

    NaN where no piece has any.
    """
    found: dict[str, list[tuple[Sequence[int], Tensor]]] = {label: [] for label in labels}
    for rows, scores in pieces:
        for label, some in scores.items():
            found[label].append((rows, some))
    merged = {}
    for label, parts in found.items():
        merged[label] = torch.full((count,), math.nan, dtype=_joint_dtype([scores for _, scores in parts]))
        for rows, some in parts:
            merged[label][torch.tensor(rows, dtype=torch.int64)] = some.to(merged[label].dtype)
    return merged


def _joint_dtype(pieces: Sequence[Tensor]) -> torch.dtype:
    """The dtype of all scores there are in ``pieces``, which says how finely they are rounded; float32 where there is none."""
    told = [scores.dtype for scores in pieces if scores.isfinite().any()]
    return reduce(torch.promote_types, told) if told else torch.float32


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
    expected = f"expected a tensor [{len(rows)}], one score a sample"
    if not isinstance(score, Tensor):
        many = isinstance(score, list | tuple) or hasattr(score, "__array__")  # such as NumPy's
        raise RunError(f"gave {type(score).__name__}; {expected}{'; return torch.as_tensor(...) of them' if many else ''}")
    if score.shape != (len(rows),):
        raise RunError(f"gave {list(score.shape)}; {expected}")
    if score.is_complex():
        raise RunError("gave complex scores, which have no order; return their .real or .abs()")
    if not score.isfinite().all():
        first = int((~score.isfinite()).nonzero()[0])
        raise RunError(f"gave {float(score[first])} for sample {rows[first]}; scores must be finite")
    own = score.detach().cpu()
    return own if own.is_floating_point() else own.double()
