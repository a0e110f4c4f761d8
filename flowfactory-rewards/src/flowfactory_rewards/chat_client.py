"""Judges behind an OpenAI-compatible endpoint, POST /chat/completions: vLLM, SGLang or a hosted one."""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from flowfactory import RunError, Samples, hookimpl
from flowfactory.models import read_picture
from flowfactory.rewards import to_pixels
from flowfactory.rewards.wire import encode_png, excerpt
from flowfactory_rewards.frame_sampling import sample_frames
from flowfactory_rewards.http_client import RETRYABLE_STATUS, Client, ClientConfig
from flowfactory_rewards.question_templates import check_question

LARGEST_ANSWER = 64 * 2**20
"""Bytes of an answer of which nothing else is known."""
MORE = frozenset({"best_of", "echo", "n", "prompt_logprobs", "stream"})
"""Keys of a request that make its answer longer than its tokens do."""

Content = list[dict[str, Any]]
"""What a message consists of: texts and pictures."""


Template = Annotated[str, AfterValidator(check_question)]
"""A text with {prompt} and the keys of a prompt's metadata in braces."""


class ChatConfig(ClientConfig):
    """What the options of every judge behind such an endpoint share; ``url`` ends where /chat/completions is to follow."""

    learned: ClassVar[bool] = True

    model: str = Field(description="the judge, as the endpoint names it")
    system: str | None = Field(None, description="the system message; null for none")
    frames: int = Field(8, ge=1, le=1000, description="of a video that are shown, evenly spread, as pictures of one message")
    sources: bool = Field(False, description="whether the pictures that a prompt brings are shown first")
    max_tokens: int = Field(16, ge=1, le=1_000_000, description="of an answer")
    top_logprobs: int = Field(20, ge=2, le=1000, description="likeliest tokens whose probabilities are requested")
    least_probability: float = Field(
        0.01, ge=0, lt=1, description="of the two answers together; below, the judge counts as having given neither"
    )
    extra_body: dict[str, Any] = Field({}, description="further keys of a request; null takes a key out")


class _TopLogprob(BaseModel):
    token: str
    logprob: float = Field(le=1e-3)  # rounding may lift a certainty above 0


class _TokenLogprob(_TopLogprob):
    top_logprobs: list[_TopLogprob] = Field([])


class _Logprobs(BaseModel):
    content: list[_TokenLogprob] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class Choice(BaseModel):
    """One answer, of which the keys that are read are named."""

    message: _Message
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[Choice] = Field(min_length=1)


class MalformedAnswer(Exception):
    """An answer that cannot be used, in a few words."""


class ChatClient:
    """Questions to the judge of ``config``."""

    def __init__(self, config: ChatConfig) -> None:
        self._config = config
        self._client = Client(config, RETRYABLE_STATUS | {500})

    def check(self) -> None:
        """RunError: an endpoint does not answer, or does not take the token."""
        self._client.get("/models", None, tolerated=(404, 405))

    def encode_sample(self, samples: Samples, i: int) -> Content:
        """Sample ``i``, as a picture or as the frames that are looked at."""
        return image_parts(to_pixels(sample_frames(samples.media[i : i + 1], self._config.frames))[0])

    def encode_sources(self, samples: Samples, i: int) -> Content:
        """The pictures that the prompt of sample ``i`` brings, where they are to be shown."""
        if not (self._config.sources and samples.sources):
            return []
        images = samples.sources[i].images
        return [part for path in images for part in image_parts(np.asarray(read_picture(path))[None])]

    def ask_all(
        self, questions: Sequence[Callable[[], Content]], read: Callable[[Choice], float], logprobs: bool
    ) -> list[float]:
        """What ``read`` makes of the answers to ``questions``, in order. RunError: one could not be used after all tries."""
        return self._client.run_all([partial(self._ask, question, read, logprobs) for question in questions])

    def _ask(
        self, question: Callable[[], Content], read: Callable[[Choice], float], logprobs: bool, stop: threading.Event
    ) -> float:
        config = self._config
        system = [{"role": "system", "content": config.system}] if config.system is not None else []
        wanted = {"logprobs": True, "top_logprobs": config.top_logprobs} if logprobs else {}
        request = {
            "model": config.model,
            "messages": [*system, {"role": "user", "content": question()}],
            "temperature": 0,
            "max_tokens": config.max_tokens,
            **wanted,
            **config.extra_body,
        }
        asked = {key: value for key, value in request.items() if value is not None}
        body, limit = json.dumps(asked).encode(), largest_answer(asked)
        tries = config.retries + 1
        for _ in range(tries):
            url, answer = self._client.post("/chat/completions", ("application/json", body), stop, limit)
            try:
                return read(parse_choice(answer))
            except MalformedAnswer as error:
                reason = str(error)
        raise RunError(f"{url}: no answer of {config.model} could be used in {tries}; the last: {reason}")


class ChatReward:
    """A reward that asks the judge of ``config``, several questions at once."""

    concurrent = True

    def __init__(self, label: str, config: ChatConfig) -> None:
        self.label, self._config = label, config
        self._chat: ChatClient | None = None

    @hookimpl
    def prepare_reward(self, device: torch.device) -> None:
        """Reach the endpoints."""
        self._chat = ChatClient(self._config)
        self._chat.check()

    def _connect(self, device: torch.device) -> ChatClient:
        """The client; reaches the endpoints where nobody has."""
        if self._chat is None:
            self.prepare_reward(device)
        assert self._chat is not None
        return self._chat


def largest_answer(asked: Mapping[str, Any]) -> int:
    """Bytes of the answer to ``asked``, the keys of a request: what its tokens and their likeliest others may take.

    A token with its bytes and its log-probability is at most 1 KiB of JSON; 1 MiB is for what else there may be.
    """
    tokens: list[int] = [asked[key] for key in ("max_tokens", "max_completion_tokens") if isinstance(asked.get(key), int)]
    likeliest = asked.get("top_logprobs", 0)
    if not tokens or not isinstance(likeliest, int) or MORE & asked.keys():
        return LARGEST_ANSWER
    return min(LARGEST_ANSWER, 2**20 + max(*tokens, 0) * (1 + max(likeliest, 0)) * 2**10)


def parse_choice(body: bytes) -> Choice:
    """The first choice of an answer. Malformed: it is none, or a refusal."""
    try:
        choice = _Completion.model_validate_json(body).choices[0]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise MalformedAnswer(f"{place or 'the answer'}: {first['msg'].lower()}: {excerpt(body)}") from error
    if choice.message.refusal:
        raise MalformedAnswer(f"it refused: {excerpt(choice.message.refusal)}")
    if choice.finish_reason == "content_filter":
        raise MalformedAnswer("it was held back by a content filter")
    return choice


def read_text(choice: Choice) -> str:
    """What was said. Malformed: nothing."""
    text = (choice.message.content or "").strip()
    if not text:
        raise MalformedAnswer(f"it said nothing (finish_reason {choice.finish_reason})")
    return text


def normalize_token(token: str) -> str:
    """The letters of a token in lower case, without what a tokenizer puts for a space."""
    return "".join(letter for letter in token.lstrip("Ġ▁") if letter.isalpha()).casefold()


def preference_probability(choice: Choice, first: str, second: str, least: float) -> float:
    """P(first) / (P(first) + P(second)) at the first token with letters, over all spellings of the two words.

    Malformed: there are no probabilities, or the two have less than ``least`` together.
    """
    tokens = choice.logprobs.content if choice.logprobs else None
    if not tokens:
        raise MalformedAnswer("it has no logprobs; the endpoint must give them")
    said = next((token for token in tokens if normalize_token(token.token)), None)
    if said is None:
        raise MalformedAnswer(f"it has no word: {excerpt(choice.message.content or '')}")
    # the chosen one stands among the likeliest, but not everywhere
    known = said.top_logprobs if any(top.token == said.token for top in said.top_logprobs) else [said, *said.top_logprobs]
    p, q = (sum(math.exp(top.logprob) for top in known if normalize_token(top.token) == wanted) for wanted in (first, second))
    if p + q <= least:
        likeliest = sorted(known, key=lambda top: -top.logprob)[:3]
        shares = ", ".join(f"{top.token!r} {math.exp(top.logprob):.3f}" for top in likeliest)
        raise MalformedAnswer(
            f"{first!r} and {second!r} have {p + q:.3g} of the probability among its {len(known)} likeliest tokens ({shares} …)"
        )
    return p / (p + q)


def text_part(said: str) -> dict[str, Any]:
    """A text within a message."""
    return {"type": "text", "text": said}


def image_parts(frames: NDArray[np.uint8]) -> Content:
    """``frames`` [f, H, W, C], uint8, within a message."""
    files = (base64.b64encode(encode_png(frame)).decode() for frame in frames)
    return [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{file}"}} for file in files]
