"""A reward behind HTTP: it computes in one thread, in the order in which requests arrive."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import math
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowfactory.config.component import ComponentConfig
from flowfactory.config.component_slots import parse_component
from flowfactory.config.overrides import apply_override
from flowfactory.config.paths import file_error
from flowfactory.config.text_files import read_text
from flowfactory.config.yaml import parse_yaml
from flowfactory.errors import RunError, UserError
from flowfactory.rewards.executors import WorkerThread
from flowfactory.rewards.scoring import Rewards
from flowfactory.rewards.wire import format, multipart, schema
from flowfactory.temporary_folders import temporary_folder
from flowfactory.types import Samples

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

SILENCE = 60.0  # seconds that the next bytes of a request may take
ARRIVAL = 600.0  # seconds that all of a request may take, so that whoever trickles takes nobody's place
LET_GO = 64 * 2**20  # bytes beyond the limit that are read and let go, so that the sender gets to read why


@dataclass(frozen=True)
class Limits:
    """The bytes and the pixels of a request, and how many requests wait while another is computed."""

    request: int
    pixels: int
    queue: int


class RequestRefused(Exception):
    """A request that is answered with ``status`` and a sentence."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


class Service:
    """What answers requests for the scores of one reward."""

    def __init__(
        self,
        name: str,
        config: ComponentConfig,
        plugins: Sequence[Path] = (),
        device: str = "cpu",
        limits: Limits = Limits(256 * 2**20, 256 * 10**6, 64),
        token: str | None = None,
    ) -> None:
        """UserError, RunError: the reward cannot read its weights."""
        self.name, self._limits, self._token = name, limits, token
        self._about = (type(config).__doc__ or "").strip()
        self._device = torch.device(device)
        self._rewards = Rewards({name: config}, plugins)
        self._rewards.prepare(self._device)
        self._reading, self._scoring = WorkerThread(f"{name} reading"), WorkerThread(name)
        self._places = asyncio.Semaphore(2)  # one that is computed, and one that is read meanwhile
        self._turn = asyncio.Lock()
        self._inside = 0
        self._answers: Counter[int] = Counter()
        self._samples = self._bytes = 0
        self._seconds = 0.0

    def app(self) -> FastAPI:
        """The endpoints."""
        from fastapi import FastAPI

        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.add_route("/", self._guard(self._describe), methods=["GET"])
        app.add_route("/health", self._guard(self._health), methods=["GET"])
        app.add_route("/metrics", self._guard(self._metrics), methods=["GET"])
        app.add_route("/score", self._guard(self._score), methods=["POST"])
        return app

    def _guard(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        from fastapi import Response
        from starlette.requests import ClientDisconnect

        async def guarded(request: Request) -> Response:
            try:
                self._check_token(request)
                response = await answer(request)
            except RequestRefused as error:
                if error.status != 408:
                    await self._drain(request)
                body = json.dumps({"error": str(error)})
                response = Response(body, error.status, error.headers, "application/json")
            except ClientDisconnect:
                response = Response(status_code=499)  # which nobody reads
            if request.url.path == "/score":
                self._answers[response.status_code] += 1
            return response

        return guarded

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            return
        given = request.headers.get("authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise RequestRefused(401, "the token is wrong" if given else "a token is required: Authorization: Bearer TOKEN")

    async def _describe(self, request: Request) -> Response:
        from fastapi.responses import PlainTextResponse

        return PlainTextResponse(f"{self.name}: {self._about}\n\n{format.__doc__}")

    async def _health(self, request: Request) -> Response:
        from fastapi.responses import JSONResponse

        return JSONResponse(
            {
                "reward": self.name,
                "version": schema.VERSION,
                "pointwise": self._rewards.pointwise,
                "max_request": self._limits.request,
                "device": str(self._device),
            }
        )

    async def _metrics(self, request: Request) -> Response:
        from fastapi.responses import PlainTextResponse

        figures = [
            ("requests_total", "counter", "Requests for scores, by the status of their answer.", None),
            ("samples_total", "counter", "Samples that were scored.", self._samples),
            ("request_bytes_total", "counter", "Bytes of requests for scores.", self._bytes),
            ("compute_seconds_total", "counter", "Seconds in which scores were computed.", self._seconds),
            ("inside", "gauge", "Requests that arrive, wait or are computed.", self._inside),
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
        from fastapi import Response

        if self._inside > self._limits.queue:
            raise RequestRefused(503, f"{self._limits.queue} requests wait already", self._wait())
        self._inside += 1
        try:
            body = await self._body(request)
            async with self._places:
                await _raise_if_disconnected(request)
                with temporary_folder() as folder:
                    content_type = request.headers.get("content-type", "")
                    samples = await asyncio.wrap_future(self._reading.submit(self._read, content_type, body, folder))
                    del body
                    async with self._turn:
                        await _raise_if_disconnected(request)
                        scores = await asyncio.wrap_future(self._scoring.submit(self._compute, samples))
        finally:
            self._inside -= 1
        return Response(format.encode_scores(scores), media_type="application/json")

    def _wait(self) -> int:
        """Seconds after which there may be room, as far as can be told."""
        done = self._answers[200]
        each = self._seconds / done if done else 1.0
        return min(30, max(1, math.ceil(each * self._inside / 2)))

    async def _body(self, request: Request) -> bytes:
        limit = self._limits.request
        refusal = RequestRefused(
            413, f"the request is larger than {limit / 2**20:g} MiB; send fewer samples in one, or serve with --max-request"
        )
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise refusal
        body = bytearray()
        async for chunk in _chunks(request):
            if len(body) + len(chunk) > limit:
                raise refusal
            body += chunk
        self._bytes += len(body)
        return bytes(body)

    async def _drain(self, request: Request) -> None:
        left = self._limits.request + LET_GO
        with suppress(Exception):  # it is refused already
            async for chunk in _chunks(request):
                left -= len(chunk)
                if left < 0:
                    return

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
            scores = self._rewards(replace(samples, media=samples.media.to(self._device)))[self.name]
        except (RunError, UserError) as error:
            expected = isinstance(error.__cause__, RunError | UserError)
            raise RequestRefused(422 if expected else 500, str(error)) from error
        self._seconds += time.perf_counter() - begun
        self._samples += len(scores)
        return scores


async def _raise_if_disconnected(request: Request) -> None:
    """ClientDisconnect: whoever asked has waited too long, and gone."""
    from starlette.requests import ClientDisconnect

    if await request.is_disconnected():
        raise ClientDisconnect


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    stream = aiter(request.stream())
    end = time.monotonic() + ARRIVAL
    while True:
        left = end - time.monotonic()
        try:
            async with asyncio.timeout(min(SILENCE, left)):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            late = f"nothing came for {SILENCE:g} s" if left > SILENCE else f"it took more than {ARRIVAL:g} s to arrive"
            raise RequestRefused(408, late) from error
        yield chunk


def load_reward(reward: str, overrides: Sequence[str] = (), plugins: Sequence[Path] = ()) -> tuple[str, ComponentConfig]:
    """The name and the options of ``reward``: a component's name, or a YAML file with one. UserError: there is no such."""
    path = Path(reward)
    folder = None
    raw: Any = {"name": reward}
    if path.suffix in (".yaml", ".yml"):
        if reason := file_error(path):
            raise UserError(reason)
        raw = parse_yaml(read_text(path, path.name), path.name)
        raw = {"name": raw} if isinstance(raw, str) else raw
        if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
            raise UserError(f"{path.name}: expected a mapping with the 'name' of a reward and its options")
        folder = path.parent
    for assignment in overrides:
        raw = apply_override(raw, assignment, "key=value")
    return raw["name"], parse_component("reward", raw, plugins, folder, path.name if folder is not None else "")


def bind(host: str, port: int) -> socket.socket:
    """A socket with its address, which does not listen yet. UserError: it cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UserError(f"--host {host}: {error.strerror}") from error
    found = socket.socket(family, kind)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise _in_use(host, port) from error
        raise UserError(f"--host {host} --port {port}: {error.strerror}") from error
    return found


def _in_use(host: str, port: int) -> UserError:
    return UserError(f"--port {port}: in use on {host}; choose another, or 0 for any that is free")


def is_local(host: str) -> bool:
    """Whether nobody outside this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_dependencies() -> None:
    """UserError: what serves is not installed."""
    for module in ("fastapi", "uvicorn"):
        if find_spec(module) is None:
            raise UserError(f"flowfactory serve needs {module}: pip install 'flowfactory[serve]'")


def serve(service: Service, listener: socket.socket, say: Callable[[str], None]) -> None:
    """Answer until SIGTERM or Ctrl+C, and then what was accepted; a second Ctrl+C leaves the rest."""
    import uvicorn

    config = uvicorn.Config(
        service.app(),
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
    )
    server = uvicorn.Server(config)
    for each in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises again what it was stopped by
        signal.signal(each, server.handle_exit)
    host, port = listener.getsockname()[:2]
    try:
        listener.listen(2048)
    except OSError as error:  # somebody else began to listen while weights were read
        raise _in_use(host, port) from error
    say(f"serving {service.name} at http://{f'[{host}]' if ':' in host else host}:{port}")
    server.run(sockets=[listener])
