"""A vision-language model as a judge, after VQAScore (arXiv:2404.01291) and after rubrics that ask for a number."""

from __future__ import annotations

import re
from functools import partial
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from flowfactory import Samples, hookimpl
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
)
from flowfactory_rewards.dependencies import require

QUESTIONS = {
    "yes-no": 'Does this figure show "{prompt}"? Please answer yes or no.',
    "score": 'How well does this figure show "{prompt}"? Answer with a number from %g (not at all) to %g (exactly) alone.',
}


class VlmConfig(ChatConfig):
    """What a judge behind an OpenAI-compatible endpoint says of each picture, higher is better.

    yes-no: P(yes) / (P(yes) + P(no)) of its first word, 0 to 1; score: the number it answers, scaled from range to 0 to 1.
    """

    question: Template | None = Field(
        None, description="the rubric, with {prompt} and keys of the metadata in braces; does it show the prompt, if left out"
    )
    answer: Literal["yes-no", "score"] = Field("yes-no", description="what is read: probabilities of yes and no, or a number")
    range: tuple[float, float] = Field((1, 10), description="least and largest number; another one is no answer")
    scale: bool = Field(True, description="whether the range becomes 0 to 1")
    pattern: str | None = Field(
        None, description="a regular expression whose group is the number; the whole answer, if left out"
    )

    @field_validator("range")
    @classmethod
    def _rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError(f"{list(value)} must rise")
        return value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            if value is not None and re.compile(value).groups != 1:
                raise ValueError(f"{value!r} must have one group, which is the number")
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from error
        return value

    def build(self, label: str) -> Vlm:
        require("vlm", "httpx2")
        return Vlm(label, self)


class Vlm:
    """A question for each sample, several at once."""

    concurrent = True
    pointwise = True

    def __init__(self, label: str, config: VlmConfig) -> None:
        self.label, self._config = label, config
        self._chat: Chat | None = None
        default = QUESTIONS[config.answer]
        self._question = config.question or (default % config.range if config.answer == "score" else default)

    @hookimpl
    def prepare_reward(self, device: torch.device) -> None:
        """Reach the endpoints."""
        self._chat = Chat(self._config)
        self._chat.check()

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: scores [B]}``."""
        if self._chat is None:
            self.prepare_reward(samples.media.device)
        assert self._chat is not None
        probable = self._config.answer == "yes-no"
        questions = [partial(self._asked, self._chat, samples, i) for i in range(len(samples.prompts))]
        return {self.label: torch.tensor(self._chat.each(questions, self._yes if probable else self._number, probable))}

    def _asked(self, chat: Chat, samples: Samples, i: int) -> Content:
        question = text(filled(self._question, samples.prompts[i], samples.metadata[i]))
        return [*chat.brought(samples, i), *chat.shown(samples, i), question]

    def _yes(self, choice: Choice) -> float:
        return preference(choice, "yes", "no", self._config.least_probability)

    def _number(self, choice: Choice) -> float:
        low, high = self._config.range
        value = number(text_of(choice), low, high, self._config.pattern)
        return (value - low) / (high - low) if self._config.scale else value


def number(said: str, low: float, high: float, pattern: str | None = None) -> float:
    """The number in what was ``said``: the group of ``pattern``, or all of it but for '/10' and ornament.

    Malformed: there is none, or it is not from ``low`` to ``high``.
    """
    found = (
        re.search(pattern, said)
        if pattern is not None
        else re.fullmatch(rf"[*\s]*([-+]?\d+(?:\.\d+)?)\s*(?:/\s*{re.escape(f'{high:g}')})?[*.\s]*", said)
    )
    try:
        value = float(found[1]) if found else None
    except (TypeError, ValueError):
        value = None
    if value is None:
        raise Malformed(f"no number alone: {said[:100]!r}")
    if not low <= value <= high:
        raise Malformed(f"{value:g} is not from {low:g} to {high:g}")
    return value
