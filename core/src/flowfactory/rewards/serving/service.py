"""What answers requests for the scores of one reward, in the order in which they arrive."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp
from torch import Tensor

from flowfactory.config.component import ComponentConfig
from flowfactory.errors import UserError
from flowfactory.rewards.executors import WorkerThread
from flowfactory.rewards.serving.bodies import Room, read_body
from flowfactory.rewards.serving.gate import Gate
from flowfactory.rewards.serving.refusals import RequestRefused
from flowfactory.rewards.serving.reward_process import RewardProcess
from flowfactory.rewards.wire import format, multipart, schema
from flowfactory.temporary_folders import temporary_folder
from flowfactory.types import Samples

LAST_SECONDS = 5.0
"""In which what still reads or scores comes to its end, when the reward's process has been ended."""


@dataclass(frozen=True)
class Limits:
    """The bytes and the pixels of a request, and how many requests, of how many bytes together, are held at once.

    timeout: the seconds that the reward may take for one.
    """

    request: int = 256 * 2**20
    pixels: int = 256 * 10**6
    queue: int = 64
    held: int = 1024 * 2**20
    timeout: float = 600


class Service:
    """What answers requests for the scores of one reward."""

    def __init__(
        self,
        name: str,
        config: ComponentConfig,
        plugins: Sequence[Path] = (),
        device: str = "cpu",
        limits: Limits = Limits(),
        token: str | None = None,
    ) -> None:
        """UserError, RunError: the reward cannot read its weights."""
        self.name, self._limits, self._token = name, limits, token
        self._about = (type(config).__doc__ or "").strip()
        self._reward = RewardProcess(name, config, plugins, device, limits.timeout)
        self._traits = self._reward.start()
        self._reading, self._scoring = WorkerThread(f"{name} reading"), WorkerThread(name)
        self._places = asyncio.Semaphore(2)  # one that is computed, and one that is read meanwhile
        self._turn = asyncio.Lock()
        self._room = Room(max(limits.held, limits.request))
        self._inside = 0
        self._answers: Counter[int] = Counter()
        self._samples = self._bytes = 0
        self._seconds = 0.0

    def close(self) -> None:
        """End the reward's process; nobody asks any more."""
        self._reward.close()
        for thread in (self._reading, self._scoring):
            thread.wait_idle(LAST_SECONDS)

    def app(self) -> ASGIApp:
        """The endpoints."""
        app = FastAPI(
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            redirect_slashes=False,  # to wherever the header Host says
            exception_handlers={404: _refuse_path, 405: _refuse_method},
        )
        app.add_route("/", _guard(self._describe), methods=["GET"])
        app.add_route("/health", _guard(self._health), methods=["GET"])
        app.add_route("/metrics", _guard(self._metrics), methods=["GET"])
        app.add_route("/score", _guard(self._score), methods=["POST"])
        return Gate(app, self._token, self._count)

    def _count(self, path: str, status: int) -> None:
        if path == "/score":
            self._answers[status] += 1

    async def _describe(self, request: Request) -> Response:
        return PlainTextResponse(f"{self.name}: {self._about}\n\n{format.__doc__}")

    async def _health(self, request: Request) -> Response:
        if not self._reward.is_ready():
            self._revive()
            raise self._reward.unready()
        return JSONResponse(
            {
                "reward": self.name,
                "version": schema.VERSION,
                "pointwise": self._traits.pointwise,
                "max_request": self._limits.request,
                "device": self._traits.device,
            }
        )

    async def _metrics(self, request: Request) -> Response:
        figures = [
            ("requests_total", "counter", "Requests for scores, by the status of their answer.", None),
            ("samples_total", "counter", "Samples that were scored.", self._samples),
            ("request_bytes_total", "counter", "Bytes of requests for scores.", self._bytes),
            ("compute_seconds_total", "counter", "Seconds in which scores were computed.", self._seconds),
            ("starts_total", "counter", "How often the process of the reward was started.", self._reward.starts),
            ("inside", "gauge", "Requests that arrive, wait or are computed.", self._inside),
            ("held_bytes", "gauge", "Bytes of requests that arrive or wait.", self._room.held),
        ]
        lines = []
        for name, kind, about, value in figures:
            lines += [f"# HELP flowfactory_{name} {about}", f"# TYPE flowfactory_{name} {kind}"]
            if value is None:
                lines += [f'flowfactory_{name}{{status="{status}"}} {n}' for status, n in sorted(self._answers.items())]
            else:
                lines.append(f"flowfactory_{name} {value}")
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def _score(self, request: Request) -> Response:
        if self._inside > self._limits.queue:
            raise RequestRefused(503, f"{self._limits.queue} requests wait already", self._wait(), unread=True)
        self._inside += 1
        try:
            with self._room.entered() as place:
                body = await read_body(request, self._limits.request, place, self._wait())
                self._bytes += len(body)
                async with self._places:
                    await _raise_if_disconnected(request)
                    with temporary_folder() as folder:
                        content_type = request.headers.get("content-type", "")
                        samples = await asyncio.wrap_future(self._reading.submit(self._read, content_type, body, folder))
                        del body
                        place.leave()
                        async with self._turn:
                            await _raise_if_disconnected(request)
                            scores = await asyncio.wrap_future(self._scoring.submit(self._compute, samples))
        finally:
            self._inside -= 1
        return Response(format.encode_scores(scores, self.name), media_type="application/json")

    def _wait(self) -> int:
        """Seconds after which there may be room, as far as can be told."""
        done = self._answers[200]
        each = self._seconds / done if done else 1.0
        return min(30, max(1, math.ceil(each * self._inside / 2)))

    def _read(self, content_type: str, body: bytes, folder: Path) -> Samples:
        try:
            samples = format.decode_request(multipart.parse_multipart(content_type, body), folder, self._limits.pixels)
        except schema.WireError as error:
            raise RequestRefused(400, str(error)) from error
        except UserError as error:
            raise RequestRefused(422, str(error)) from error
        # which labels judge a prompt was seen to where it was asked from; this one has another label here
        metadata = tuple({k: v for k, v in each.items() if k != "rewards"} for each in samples.metadata)
        return replace(samples, metadata=metadata)

    def _compute(self, samples: Samples) -> Tensor:
        begun = time.perf_counter()
        try:
            scores = self._reward.compute(samples)
        finally:
            if not self._reward.is_ready():
                self._revive()
        self._seconds += time.perf_counter() - begun
        self._samples += len(scores)
        return scores

    def _revive(self) -> Future[None]:
        def revive() -> None:
            with suppress(RequestRefused):  # the next one who asks is told
                self._reward.revive()

        return self._scoring.submit(revive)


def _guard(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        try:
            return await answer(request)
        except RequestRefused as error:
            return error.response()
        except ClientDisconnect:
            return Response(status_code=499)  # which nobody reads

    return guarded


async def _refuse_path(request: Request, error: Exception) -> Response:
    said = "there is no such path; there are GET /, GET /health, GET /metrics and POST /score"
    return RequestRefused(404, said, unread=True).response()


async def _refuse_method(request: Request, error: Exception) -> Response:
    said = "no such method here; there are GET /, GET /health, GET /metrics and POST /score"
    response = RequestRefused(405, said, unread=True).response()
    response.headers.update(getattr(error, "headers", None) or {})
    return response


async def _raise_if_disconnected(request: Request) -> None:
    """ClientDisconnect: whoever asked has waited too long, and gone."""
    if await request.is_disconnected():
        raise ClientDisconnect
