"""Members of a group compared two by two by a judge, each pair in both orders; preferences as in arXiv:2306.05685."""

from __future__ import annotations

from functools import cache, partial
from itertools import combinations
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import Samples, hookimpl
from flowfactory.rewards import rows_by_group
from flowfactory_rewards.chat_judge import (
    Chat,
    ChatConfig,
    Choice,
    Content,
    Malformed,
    Template,
    filled,
    preference,
    text,
    text_of,
    word,
)
from flowfactory_rewards.dependencies import require


class PairwiseConfig(ChatConfig):
    """How often a picture is preferred to others of its group by a judge behind an OpenAI-compatible endpoint, 0 to 1.

    The mean over its opponents of the probability that it wins, which is that of two questions, one in each order. Higher is
    better; the mean over a group is 1/2, whatever the group is.
    """

    question: Template = Field(
        'Which figure shows "{prompt}" better, A or B? Answer with A or B alone.',
        description="the rubric, with {prompt} and keys of the metadata in braces",
    )
    answer: Literal["probability", "choice"] = Field(
        "probability", description="what is read: the probabilities of A and B, or the letter it answers"
    )
    opponents: Literal["all"] | Annotated[int, Field(ge=1)] = Field(
        "all", description="how many others of the group each is compared with; one more where it cannot be else"
    )

    def build(self, label: str) -> Pairwise:
        require("pairwise", "httpx2")
        return Pairwise(label, self)


class Pairwise:
    """Two questions for each pair, several at once."""

    concurrent = True

    def __init__(self, label: str, config: PairwiseConfig) -> None:
        self.label, self._config = label, config
        self._chat: Chat | None = None

    @hookimpl
    def prepare_reward(self, device: torch.device) -> None:
        """Reach the endpoints."""
        self._chat = Chat(self._config)
        self._chat.check()

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: win rates [B]}``; 1/2 for the only member of a group."""
        if self._chat is None:
            self.prepare_reward(samples.media.device)
        assert self._chat is not None
        chat, shown = self._chat, cache(partial(self._chat.shown, samples))

        def asked(i: int, j: int) -> Content:
            given = [text("Given:"), *chat.brought(samples, i)] if self._config.sources and samples.sources else []
            question = filled(self._config.question, samples.prompts[i], samples.metadata[i])
            return [*given, text("A:"), *shown(i), text("B:"), *shown(j), text(question)]

        groups = rows_by_group(range(len(samples.prompts)), samples.groups)
        met = [(rows[i], rows[j]) for rows in groups for i, j in pairs(len(rows), self._config.opponents)]
        orders = [order for i, j in met for order in ((i, j), (j, i))]
        probable = self._config.answer == "probability"
        read = self._likelier if probable else _chosen
        wins = chat.each([partial(asked, *order) for order in orders], read, probable)
        return {self.label: win_rates(len(samples.prompts), met, wins[::2], wins[1::2])}

    def _likelier(self, choice: Choice) -> float:
        return preference(choice, "a", "b", self._config.least_probability)


def _chosen(choice: Choice) -> float:
    letter = word(said := text_of(choice))
    if letter not in ("a", "b"):
        raise Malformed(f"neither A nor B: {said[:100]!r}")
    return float(letter == "a")


def pairs(size: int, opponents: Literal["all"] | int) -> list[tuple[int, int]]:
    """Which of ``size`` members meet, so that each meets ``opponents`` others, or one more where both are odd."""
    if opponents == "all" or opponents >= size - 1:
        return list(combinations(range(size), 2))
    half, odd = divmod(opponents, 2)
    distances = [*range(1, half + 1), *([size // 2 if size % 2 == 0 else half + 1] if odd else [])]
    return sorted({_ordered(i, (i + distance) % size) for distance in distances for i in range(size)})


def _ordered(i: int, j: int) -> tuple[int, int]:
    return min(i, j), max(i, j)


def win_rates(count: int, met: list[tuple[int, int]], first: list[float], swapped: list[float]) -> Tensor:
    """float32 [count]: mean over opponents of the probability of a win, which is the mean of both orders.

    ``first``: that i of (i, j) is preferred when shown first; ``swapped``: that j is, when j is shown first.
    """
    won, times = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for (i, j), ahead, behind in zip(met, first, swapped, strict=True):
        win = (ahead + 1 - behind) / 2
        won[i] += win
        won[j] += 1 - win
        times[i] += 1
        times[j] += 1
    return torch.where(times > 0, won / times.clamp(min=1), 0.5).float()
