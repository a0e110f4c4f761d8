"""Any reward in another process, environment or on another machine, where ``flowfactory serve`` computes it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from flowfactory import RunError, Samples, hookimpl
from flowfactory.rewards import rows_by_group
from flowfactory.rewards.wire import VERSION, Encoding, WireError, build_multipart, decode_scores, encode_request, excerpt
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.http_client import Client, ClientConfig

LARGEST_HEALTH = 64 * 2**10
"""Bytes of what a server says of itself."""


class RemoteConfig(ClientConfig):
    """The scores that ``flowfactory serve`` gives behind ``url``; range and direction are those of the reward there."""

    known_as = ("http", "server", "api")

    starter_options: ClassVar[Mapping[str, Any]] = {"url": "http://localhost:8100"}

    free_to_change = (*ClientConfig.free_to_change, "batch_size")

    encoding: Encoding = Field(
        "png", description="png, webp: 8 bits, videos as FFV1; raw: exact, float32; raw8: 8 bits without compression"
    )
    batch_size: int = Field(
        16, ge=1, le=100_000, description="samples a request; groups stay whole where the reward compares them"
    )

    def lacking(self) -> str | None:
        return missing_module("remote", "httpx2")

    def build(self, label: str) -> Remote:
        require(self)
        return Remote(label, self)


class Health(BaseModel):
    """What a server says of itself; it may say more."""

    reward: str
    version: int
    pointwise: bool
    max_request: int


class Remote:
    """Requests for the scores of batches, several at once."""

    concurrent = True

    def __init__(self, label: str, config: RemoteConfig) -> None:
        self.label, self._config = label, config
        self._client: Client | None = None
        self.pointwise = False  # until every server says so
        self._max_request = 0
        self._reward = ""

    @hookimpl
    def prepare_reward(self, device: torch.device) -> None:
        """Ask every server how it is. RunError: one does not answer, or they serve different rewards."""
        self._client = Client(self._config)
        told = [_parse_health(url, body) for url, body in self._client.get("/health", LARGEST_HEALTH)]
        for url, each in zip(self._config.url, told, strict=True):
            if each.reward != told[0].reward:
                raise RunError(
                    f"{self._config.url[0]} serves {told[0].reward!r} and {url} {each.reward!r}; all must serve one reward"
                )
        self._reward = told[0].reward
        self.pointwise = all(each.pointwise for each in told)
        self._max_request = min(each.max_request for each in told)

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: scores [B]}``."""
        if self._client is None:
            self.prepare_reward(samples.media.device)
        assert self._client is not None
        rows = list(range(len(samples.prompts)))
        units = [[row] for row in rows] if self.pointwise else rows_by_group(rows, samples.groups)
        batches = pack_batches(units, self._config.batch_size)
        found = self._client.run_all([partial(self._request_scores, samples, batch) for batch in batches])
        together = torch.cat(found)
        scores = torch.empty_like(together)
        scores[[row for batch in batches for row in batch]] = together
        return {self.label: scores}

    def _request_scores(self, samples: Samples, rows: Sequence[int], stop: threading.Event) -> Tensor:
        assert self._client is not None
        try:
            body = build_multipart(encode_request(samples.rows(rows), self._config.encoding))
        except WireError as error:
            raise RunError(str(error)) from error
        if len(body[1]) > self._max_request:
            raise RunError(
                f"{len(rows)} samples make a request of {len(body[1]) / 2**20:.1f} MiB, and {self._config.url[0]} "
                f"takes {self._max_request / 2**20:g}; lower batch_size, or serve with a larger --max-request"
            )
        url, answer = self._client.post("/score", body, stop, largest_answer(len(rows)))
        try:
            return decode_scores(answer, len(rows), self._reward)
        except WireError as error:
            raise RunError(f"{url}: {error}") from error


def largest_answer(count: int) -> int:
    """Bytes of an answer that holds ``count`` scores: each may have 100 digits and spaces, and there may be other keys."""
    return 64 * 2**10 + 128 * count


def pack_batches(units: list[list[int]], size: int) -> list[list[int]]:
    """The rows of whole ``units`` in batches of at most ``size``, or of one unit where that is larger."""
    batches: list[list[int]] = []
    for unit in units:
        if batches and len(batches[-1]) + len(unit) <= size:
            batches[-1] += unit
        else:
            batches.append(list(unit))
    return batches


def _parse_health(url: str, body: bytes) -> Health:
    try:
        found = Health.model_validate_json(body)
    except ValidationError as error:
        raise RunError(f"{url}/health answered {excerpt(body)}; is that flowfactory serve?") from error
    if found.version != VERSION:
        raise RunError(
            f"{url} speaks version {found.version} of the format and this is {VERSION}; install the same flowfactory"
        )
    return found
