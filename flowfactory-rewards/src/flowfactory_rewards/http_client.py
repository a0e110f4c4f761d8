"""Requests to servers that may be slow, busy or gone: connections are kept, failures tried again, several URLs shared."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from queue import Empty, SimpleQueue
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar
from urllib.parse import urljoin, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from flowfactory import ComponentConfig, RunError
from flowfactory.rewards.wire import excerpt, read_token
from flowfactory_rewards.timed_requests import Answer, TimedRequests, UnusableAnswer, connect_timeout

T = TypeVar("T")

FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0  # seconds that a server is left alone after a failure, which double
LONGEST_REASON = 300  # characters of what is said of a connection, which may quote all that came
RETRYABLE_STATUS = frozenset({408, 429, 502, 503, 504})
"""What a server says that may do better next time."""


def _check_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{text!r} is no URL; write it as http://host:port")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # not shown: it may hold a secret
        raise ValueError("a URL ends with its path and has no user in it; name the variable of a token with token_env")
    return text.rstrip("/")


Urls = Annotated[
    tuple[Annotated[str, AfterValidator(_check_url)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]
"""One URL or several."""


class ClientConfig(ComponentConfig):
    """What the options of every reward behind HTTP share."""

    free_to_change: ClassVar[tuple[str, ...]] = ("url", "token_env", "requests", "request_timeout", "retries", "patience")

    sends_to: ClassVar[Mapping[str, str]] = {
        "url": "sends pictures and prompts to",
        "token_env": "sends what is in the environment variable",
    }

    url: Urls = Field(
        examples=["http://host:port, or a list of several"], description="where it is; several share the requests"
    )
    token_env: str | None = Field(None, description="the environment variable that holds the token; null for none")
    requests: int = Field(8, ge=1, le=1000, description="sent at once, over all URLs")
    request_timeout: float = Field(
        120, gt=0, le=1_000_000, description="seconds that one try may take, from the connection to the end of the answer"
    )
    retries: int = Field(5, ge=0, le=1000, description="further tries of a request that fails, with growing rests between them")
    patience: float = Field(
        600,
        gt=0,
        le=10_000_000,
        description="seconds that a request waits for servers that are busy, or that were there and are away",
    )

    def weight_bytes(self) -> dict[str, int]:
        """None here: so that the servers are asked before any weight is read."""
        return {}


@dataclass
class Host:
    """One of the URLs, and how it does."""

    url: str
    in_flight: int = 0
    answered: bool = False  # ever: it is there, and worth waiting for when it goes away
    failures: int = 0  # since its last answer
    tries: int = 0  # of those, the ones that are no reason to be patient
    retry_at: float = 0.0  # when it is to be asked again, by the monotonic clock
    most: int = 0  # requests at once that it has room for, until full_until
    full_until: float = 0.0
    answers: int = 0  # counts them, so that it is known whether it has room for any
    era: int = 0  # counts its rests, so that requests that fail together count as one failure

    def free_at(self, now: float) -> float:
        """When it may have one request more; ``now`` where it may at once."""
        return max(now, self.retry_at, self.full_until if self.in_flight >= self.most else 0.0)


class Turn(NamedTuple):
    """A request's turn at ``host``, and what was counted there when it began."""

    host: Host
    era: int
    answers: int


@dataclass(frozen=True)
class Failure:
    """Why a try gave nothing, and for how many seconds the server asks to be left alone.

    ``state``: full, busy or away, for which there is patience; '' for what counts as a try. A server that is full has room for
    fewer requests than it was sent.
    """

    reason: str
    state: Literal["full", "busy", "away", ""] = ""
    wait: float = 0.0


class Cancelled(Exception):
    """Another request of the same lot has failed."""


class Client:
    """Requests to the URLs of ``config``. UserError: the token is not there."""

    def __init__(self, config: ClientConfig, retryable: frozenset[int] = RETRYABLE_STATUS) -> None:
        self.config, self._retryable = config, retryable
        self._token = read_token("token_env", config.token_env)
        self._hosts = [Host(url) for url in config.url]
        self._changed = threading.Condition()
        self._chance = random.Random()
        self._turn = 0
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        self._requests = TimedRequests(headers, max(config.requests, len(config.url)))

    def run_all(self, calls: Sequence[Callable[[threading.Event], T]]) -> list[T]:
        """The results of ``calls`` in order, ``config.requests`` at once; the first error ends all."""
        stop = threading.Event()
        todo: SimpleQueue[int] = SimpleQueue()
        done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()
        for i in range(len(calls)):
            todo.put(i)

        def work() -> None:
            while not stop.is_set():
                try:
                    i = todo.get_nowait()
                except Empty:
                    return
                try:
                    done.put((i, calls[i](stop), None))
                except BaseException as error:
                    done.put((i, None, error))
                    stop.set()

        for _ in range(min(self.config.requests, len(calls))):
            # daemons: a run that ends does not wait for a server
            threading.Thread(target=work, daemon=True, name="request").start()
        results: dict[int, Any] = {}
        try:
            while len(results) < len(calls):
                i, result, error = done.get()
                if error is not None:
                    raise error
                results[i] = result
        finally:
            stop.set()
        return [results[i] for i in range(len(calls))]

    def get(self, path: str, limit: int | None, tolerated: Collection[int] = ()) -> list[tuple[str, bytes]]:
        """Every URL and the body of its answer, whose status is 200 or ``tolerated``. ``limit``, RunError: as :meth:`post`."""
        return [self._send("GET", path, None, threading.Event(), [host], limit, tolerated) for host in self._hosts]

    def post(self, path: str, body: tuple[str, bytes], stop: threading.Event, limit: int) -> tuple[str, bytes]:
        """The URL that answered and the body, of at most ``limit`` bytes, of its answer to ``body``, a Content-Type and bytes.

        RunError, with the URL, the tries and the last reason: none could, or one said that it never will, or said too much.
        """
        return self._send("POST", path, body, stop, self._hosts, limit)

    def _send(
        self,
        method: str,
        path: str,
        body: tuple[str, bytes] | None,
        stop: threading.Event,
        hosts: Sequence[Host],
        limit: int | None,
        tolerated: Collection[int] = (),
    ) -> tuple[str, bytes]:
        begun = time.monotonic()
        tries = 0
        while True:
            turn = self._acquire_host(hosts, stop)
            host = turn.host
            try:
                answer = self._requests.send(method, host.url + path, body, self.config.request_timeout, limit)
            except UnusableAnswer as error:
                self._release_host(turn, None)
                raise RunError(f"{host.url}: {error}; see what serves there") from error
            except Exception as error:
                failure = self._failure(host, error)
            else:
                if not self._may_pass(answer):
                    self._release_host(turn, None)
                    if answer.status != 200 and answer.status not in tolerated:
                        raise RunError(self._describe_refusal(host, path, answer))
                    return host.url, answer.body
                failure = self._passing_refusal(answer)
            waited = time.monotonic() - begun
            left = max(0.0, self.config.patience - waited)
            self._release_host(turn, replace(failure, wait=min(failure.wait, left)))
            if failure.state and not left:
                state = "away" if failure.state == "away" else "busy"
                raise RunError(f"{host.url}: {state} for {waited:.0f} s; the last answer: {failure.reason}")
            tries += not failure.state
            # others may have tried all servers meanwhile
            if max(tries, min(host.tries for host in hosts)) > self.config.retries and not failure.state:
                told = "1 try" if self.config.retries == 0 else f"{self.config.retries + 1} tries"
                raise RunError(f"{host.url}: no answer in {told}; the last: {failure.reason}")

    def _failure(self, host: Host, error: Exception) -> Failure:
        import httpx2

        # one that starts again takes no connections meanwhile
        away = host.answered and isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        return Failure(self._describe_failure(error), "away" if away else "")

    def _may_pass(self, answer: Answer) -> bool:
        """Whether another try may do better; a 500 without a sentence is that of a proxy, or of a server that ends."""
        return answer.status in self._retryable or (answer.status == 500 and not find_message(answer.body))

    def _passing_refusal(self, answer: Answer) -> Failure:
        wait = _retry_after(answer.headers.get("retry-after"))
        reason = f"{answer.status}, {self._mask_token(error_message(answer.body))}"
        if answer.status == 429:
            return Failure(reason, "busy", wait)
        return Failure(reason, "full", wait) if answer.status == 503 and wait > 0 else Failure(reason)

    def _acquire_host(self, hosts: Sequence[Host], stop: threading.Event) -> Turn:
        """A turn at the host that has least to do of those that may be asked; waits for one."""
        with self._changed:
            while True:
                if stop.is_set():
                    raise Cancelled
                now = time.monotonic()
                # one that has failed is tried with a single request first
                ready = [host for host in hosts if host.free_at(now) <= now and not (host.failures and host.in_flight)]
                if ready:
                    self._turn += 1
                    place = {id(host): (i - self._turn) % len(hosts) for i, host in enumerate(hosts)}
                    chosen = min(ready, key=lambda host: (host.in_flight, place[id(host)]))
                    chosen.in_flight += 1
                    return Turn(chosen, chosen.era, chosen.answers)
                resting = [host.free_at(now) - now for host in hosts if host.free_at(now) > now]
                self._changed.wait(min([0.5, *(rest * self._chance.uniform(1, 1.1) + 0.001 for rest in resting)]))

    def _release_host(self, turn: Turn, failure: Failure | None) -> None:
        """After an answer, or a failure."""
        host = turn.host
        with self._changed:
            host.in_flight -= 1
            if failure is None:
                host.answered = True
                host.answers += 1
                host.failures = host.tries = 0
            elif failure.state == "full" and (host.in_flight or host.answers > turn.answers):
                # it has room for others of ours: as many as are there, until somebody may have left
                host.most = max(1, host.in_flight)
                host.full_until = time.monotonic() + failure.wait * self._chance.uniform(1, 1.25)
            elif turn.era == host.era:
                host.era += 1
                host.failures += not failure.wait
                host.tries += not failure.state
                growing = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(host.failures - 1, 60))
                host.retry_at = time.monotonic() + (failure.wait or growing) * self._chance.uniform(1, 1.25)
            self._changed.notify_all()

    def _describe_refusal(self, host: Host, path: str, answer: Answer) -> str:
        if 300 <= answer.status < 400 and (location := answer.headers.get("location")):
            said = self._mask_token(_target(host.url + path, location).removesuffix(path))[:200]
            return (
                f"{host.url}: answered {answer.status}, a redirect to {said}, which is not followed; give url the right address"
            )
        said = self._mask_token(error_message(answer.body))
        if answer.status in (401, 403):
            variable = self.config.token_env
            todo = f"see what {variable} holds" if variable else "name the environment variable that holds one with token_env"
            return f"{host.url}: answered {answer.status}, {said}; {todo}"
        return f"{host.url}: answered {answer.status}, {said}"

    def _describe_failure(self, error: Exception) -> str:
        import httpx2

        if isinstance(error, httpx2.ConnectTimeout):
            return f"no connection within {connect_timeout(self.config.request_timeout):.3g} s"
        if isinstance(error, TimeoutError):
            return f"no answer within {self.config.request_timeout:g} s"
        if isinstance(error, httpx2.RequestError):
            said = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
            return self._mask_token(said)[:LONGEST_REASON]
        raise error

    def _mask_token(self, text: str) -> str:
        """Servers say what token they were given."""
        return text.replace(self._token, "***") if self._token else text


def _target(asked: str, location: str) -> str:
    """Where a redirect leads, without its query and its user, which may be secrets."""
    try:
        place = urlsplit(urljoin(asked, location))
    except ValueError:
        return "an address that cannot be read"
    return f"{place.scheme}://{place.netloc.rpartition('@')[2]}{place.path}"


def _retry_after(text: str | None) -> float:
    """Seconds; 0 where nothing that can be read is asked for."""
    if text is None:
        return 0.0
    try:
        return max(0.0, float(text) if not text.strip().endswith("GMT") else _seconds_until(text))
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _seconds_until(date: str) -> float:
    return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()


def error_message(body: bytes) -> str:
    """The sentence of an answer that is an error, or how it begins."""
    return find_message(body) or excerpt(body)


def find_message(body: bytes) -> str:
    """The sentence of an answer that is an error: this format's, FastAPI's and OpenAI's; '' where there is none."""
    found: Any
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    for key in ("error", "message", "detail"):
        while isinstance(found, dict) and key in found:
            found = found[key]
    return " ".join(found.split())[:500] if isinstance(found, str) else ""
