"""A vision-language model as a judge, after VQAScore (arXiv:2404.01291) and after rubrics that ask for a number."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from flowfactory import Samples, hookimpl
from flowfactory_rewards import chat_client
from flowfactory_rewards.chat_client import ChatClient, ChatConfig, ChatReward, Choice, Content, MalformedAnswer, Template
from flowfactory_rewards.combined_scores import check_combination, combine
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.question_templates import fill_question

if TYPE_CHECKING:
    from flowfactory import RunConfig

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

    patterns: tuple[str, ...] = Field(
        (), description="regular expressions whose named groups are several numbers of one answer; each must be found"
    )
    combine: Literal["mean", "min", "product-root"] | dict[str, Any] = Field(
        "mean",
        examples=["min", "{text: 2, style: 1}", "{product-root: [{min: [follows, keeps]}, {min: [natural, clean]}]}"],
        description="how one score is made of them: one of the three, a mapping from names to weights, or from one of the "
        "three to a list of names and of such mappings",
    )
    passes: int = Field(1, ge=1, le=100, description="answers to each question, whose mean counts")

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

    @field_validator("patterns")
    @classmethod
    def _check_patterns(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        try:
            names = [name for value in values for name in re.compile(value).groupindex]
            lacking = [value for value in values if not re.compile(value).groupindex]
        except re.error as error:
            raise ValueError(f"one is no regular expression: {error}") from error
        if lacking:
            raise ValueError(f"{lacking[0]!r} has no named group; write one, such as (?P<style>\\d+)")
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two groups are called {twice.pop()!r}")
        return values

    @model_validator(mode="after")
    def _check_several(self) -> VlmConfig:
        if not self.patterns:
            if "combine" in self.model_fields_set and self.combine != "mean":
                raise ValueError("combine: is for several numbers; name them by patterns, or leave it out")
            return self
        if self.pattern is not None or self.answer != "score":
            raise ValueError("patterns: are for answer: score, in the place of pattern")
        try:
            check_combination(self.combine, [name for value in self.patterns for name in re.compile(value).groupindex])
        except ValueError as error:
            raise ValueError(f"combine: {error}") from error
        return self

    def remarks(self, run: RunConfig) -> Iterator[str]:
        """Answers that are all the same."""
        if self.passes > 1 and not self.extra_body.get("temperature"):
            yield f"passes {self.passes} of vlm: at temperature 0 all answers are the same; set extra_body: {{temperature: 1}}"

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
        passes = self._config.passes
        asked = [question for question in questions for _ in range(passes)]
        answers = chat.ask_all(asked, self._read_yes if probable else self._read_number, probable)
        return {self.label: torch.tensor(answers).view(-1, passes).mean(1)}

    def _build_question(self, chat: ChatClient, samples: Samples, i: int) -> Content:
        question = chat_client.text_part(fill_question(self._question, samples.prompts[i], samples.metadata[i]))
        return [*chat.encode_sources(samples, i), *chat.encode_sample(samples, i), question]

    def _read_yes(self, choice: Choice) -> float:
        return chat_client.preference_probability(choice, "yes", "no", self._config.least_probability)

    def _read_number(self, choice: Choice) -> float:
        config, said = self._config, chat_client.read_text(choice)
        if not config.patterns:
            return self._scale(parse_number(said, *config.range, config.pattern))
        values = parse_numbers(said, *config.range, config.patterns)
        return combine({name: self._scale(value) for name, value in values.items()}, config.combine)

    def _scale(self, value: float) -> float:
        low, high = self._config.range
        return (value - low) / (high - low) if self._config.scale else value


def parse_numbers(said: str, low: float, high: float, patterns: Sequence[str]) -> dict[str, float]:
    """The numbers in what was ``said`` by the named groups of ``patterns``. Malformed: one is not there, or not within."""
    return {
        name: parse_number(said, low, high, pattern, name) for pattern in patterns for name in re.compile(pattern).groupindex
    }


def parse_number(said: str, low: float, high: float, pattern: str | None = None, group: int | str = 1) -> float:
    """The number in what was ``said``: the ``group`` of ``pattern``, or all of it but for '/10' and ornament.

    Malformed: there is none, or it is not from ``low`` to ``high``.
    """
    found = (
        re.search(pattern, said)
        if pattern is not None
        else re.fullmatch(rf"[*\s]*([-+]?\d+(?:\.\d+)?)\s*(?:/\s*{re.escape(f'{high:g}')})?[*.\s]*", said)
    )
    try:
        value = float(found[group]) if found else None
    except (TypeError, ValueError):
        value = None
    if value is None:
        what = "no number alone" if pattern is None or group == 1 else f"no number {group!r}"
        raise MalformedAnswer(f"{what}: {said[:100]!r}")
    if not low <= value <= high:
        raise MalformedAnswer(f"{value:g} is not from {low:g} to {high:g}")
    return value
