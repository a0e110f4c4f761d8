"""A vision-language model as a judge, after VQAScore (arXiv:2404.01291) and after rubrics that ask for a number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from flowfactory import Samples, hookimpl
from flowfactory_rewards import chat_client
from flowfactory_rewards.chat_client import ChatClient, ChatConfig, ChatReward, Choice, Content, MalformedAnswer, Template
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.question_templates import fill_question

QUESTIONS = {
    "yes-no": 'Does this figure show "{prompt}"? Please answer yes or no.',
    "score": 'How well does this figure show "{prompt}"? Answer with a number from %g (not at all) to %g (exactly) alone.',
}


class VlmConfig(ChatConfig):
    """What a judge behind an OpenAI-compatible endpoint says of each picture, higher is better.

    yes-no: P(yes) / (P(yes) + P(no)) of its first word, 0 to 1; score: the number it answers, scaled from range to 0 to 1.
    """

    known_as = ("unified-reward", "qwen-vl", "vlm-judge", "gpt")

    starter_options: ClassVar[Mapping[str, Any]] = {"url": "http://localhost:8000", "model": "Qwen/Qwen2.5-VL-7B-Instruct"}
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"Qwen/Qwen2.5-VL-7B-Instruct": "see its page"}

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
    def _check_number_pattern(cls, value: str | None) -> str | None:
        try:
            if value is not None and re.compile(value).groups != 1:
                raise ValueError(f"{value!r} must have one group, which is the number")
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from error
        return value

    def lacking(self) -> str | None:
        return missing_module("vlm", "httpx2")

    def build(self, label: str) -> Vlm:
        require(self)
        return Vlm(label, self)


class Vlm(ChatReward):
    """A question for each sample, several at once."""

    _config: VlmConfig
    pointwise = True

    def __init__(self, label: str, config: VlmConfig) -> None:
        super().__init__(label, config)
        default = QUESTIONS[config.answer]
        self._question = config.question or (default % config.range if config.answer == "score" else default)

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: scores [B]}``."""
        chat = self._connect(samples.media.device)
        probable = self._config.answer == "yes-no"
        questions = [partial(self._build_question, chat, samples, i) for i in range(len(samples.prompts))]
        return {self.label: torch.tensor(chat.ask_all(questions, self._read_yes if probable else self._read_number, probable))}

    def _build_question(self, chat: ChatClient, samples: Samples, i: int) -> Content:
        question = chat_client.text_part(fill_question(self._question, samples.prompts[i], samples.metadata[i]))
        return [*chat.encode_sources(samples, i), *chat.encode_sample(samples, i), question]

    def _read_yes(self, choice: Choice) -> float:
        return chat_client.preference_probability(choice, "yes", "no", self._config.least_probability)

    def _read_number(self, choice: Choice) -> float:
        low, high = self._config.range
        value = parse_number(chat_client.read_text(choice), low, high, self._config.pattern)
        return (value - low) / (high - low) if self._config.scale else value


def parse_number(said: str, low: float, high: float, pattern: str | None = None) -> float:
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
        raise MalformedAnswer(f"no number alone: {said[:100]!r}")
    if not low <= value <= high:
        raise MalformedAnswer(f"{value:g} is not from {low:g} to {high:g}")
    return value
