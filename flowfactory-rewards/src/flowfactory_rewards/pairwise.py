"""Members of a group compared two by two by a judge, each pair in both orders; preferences as in arXiv:2306.05685."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from flowfactory import Samples, hookimpl
from flowfactory.rewards import rows_by_group
from flowfactory_rewards import chat_client
from flowfactory_rewards.chat_client import ChatConfig, ChatReward, Choice, Content, MalformedAnswer, Template
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.question_templates import fill_question


class PairwiseConfig(ChatConfig):
    """How often a picture is preferred to others of its group by a judge behind an OpenAI-compatible endpoint, 0 to 1.

    The mean over its opponents of the probability that it wins, which is that of two questions, one in each order. Higher is
    better; the mean over a group is 1/2, whatever the group is.
    """

    starter_options: ClassVar[Mapping[str, Any]] = {"url": "http://localhost:8000", "model": "Qwen/Qwen2.5-VL-7B-Instruct"}
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"Qwen/Qwen2.5-VL-7B-Instruct": "see its page"}

    question: Template = Field(
        'Which figure shows "{prompt}" better, A or B? Answer with A or B alone.',
        description="the rubric, with {prompt} and keys of the metadata in braces",
    )
    answer: Literal["probability", "choice"] = Field(
        "probability", description="what is read: the probabilities of A and B, or the letter it answers"
    )
    pattern: str | None = Field(
        None,
        examples=['"better": "(A|B|tie)"'],
        description="with answer: choice, a regular expression whose group is the letter; the whole answer, if left out",
    )
    ties: tuple[str, ...] = Field((), examples=["[C, tie]"], description="answers that mean that neither is better")
    opponents: Literal["all"] | Annotated[int, Field(ge=1)] = Field(
        "all", description="how many others of the group each is compared with; one more where it cannot be else"
    )

    @model_validator(mode="after")
    def _check_choice(self) -> PairwiseConfig:
        if self.answer != "choice" and (self.pattern is not None or self.ties):
            raise ValueError("pattern and ties are for answer: choice; write it, or leave them out")
        try:
            if self.pattern is not None and re.compile(self.pattern).groups != 1:
                raise ValueError(f"pattern: {self.pattern!r} must have one group, which is the letter")
        except re.error as error:
            raise ValueError(f"pattern: {self.pattern!r} is no regular expression: {error}") from error
        return self

    def lacking(self) -> str | None:
        return missing_module("pairwise", "httpx2")

    def build(self, label: str) -> Pairwise:
        require(self)
        return Pairwise(label, self)


class Pairwise(ChatReward):
    """Two questions for each pair, several at once."""

    _config: PairwiseConfig

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: win rates [B]}``; 1/2 for the only member of a group."""
        chat = self._connect(samples.media.device)
        text, shown = chat_client.text_part, cache(partial(chat.encode_sample, samples))

        def build_question(i: int, j: int) -> Content:
            given = [text("Given:"), *chat.encode_sources(samples, i)] if self._config.sources and samples.sources else []
            question = fill_question(self._config.question, samples.prompts[i], samples.metadata[i])
            return [*given, text("A:"), *shown(i), text("B:"), *shown(j), text(question)]

        groups = rows_by_group(range(len(samples.prompts)), samples.groups)
        met = [(rows[i], rows[j]) for rows in groups for i, j in choose_pairs(len(rows), self._config.opponents)]
        orders = [order for i, j in met for order in ((i, j), (j, i))]
        probable = self._config.answer == "probability"
        read = self._read_probability if probable else self._read_choice
        wins = chat.ask_all([partial(build_question, *order) for order in orders], read, probable)
        return {self.label: win_rates(len(samples.prompts), met, wins[::2], wins[1::2])}

    def _read_probability(self, choice: Choice) -> float:
        return chat_client.preference_probability(choice, "a", "b", self._config.least_probability)

    def _read_choice(self, choice: Choice) -> float:
        said, config = chat_client.read_text(choice), self._config
        found = re.search(config.pattern, said) if config.pattern is not None else None
        told = said if config.pattern is None else found[1] if found else ""
        letter = chat_client.normalize_token(told or "")
        if letter and letter in map(chat_client.normalize_token, config.ties):
            return 0.5
        if letter not in ("a", "b"):
            raise MalformedAnswer(f"neither A nor B: {said[:100]!r}")
        return float(letter == "a")


def choose_pairs(size: int, opponents: Literal["all"] | int) -> list[tuple[int, int]]:
    """Which of ``size`` members meet, so that each meets ``opponents`` others, or one more where both are odd."""
    if opponents == "all" or opponents >= size - 1:
        return list(combinations(range(size), 2))
    half, odd = divmod(opponents, 2)
    distances = [*range(1, half + 1), *([size // 2 if size % 2 == 0 else half + 1] if odd else [])]
    return sorted({_sort_pair(i, (i + distance) % size) for distance in distances for i in range(size)})


def _sort_pair(i: int, j: int) -> tuple[int, int]:
    return min(i, j), max(i, j)


def win_rates(count: int, met: list[tuple[int, int]], first: list[float], swapped: list[float]) -> Tensor:
    """float64 [count]: mean over opponents of the probability of a win, which is the mean of both orders.

    ``first``: that i of (i, j) is preferred when shown first; ``swapped``: that j is, when j is shown first.
    """
    won, times = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for (i, j), ahead, behind in zip(met, first, swapped, strict=True):
        win = (ahead + 1 - behind) / 2
        won[i] += win
        won[j] += 1 - win
        times[i] += 1
        times[j] += 1
    return torch.where(times > 0, won / times.clamp(min=1), 0.5)
