"""Whatever is behind a URL, each reward over HTTP ends in bounded time, with one line that names the URL."""

from __future__ import annotations

import gzip
import re
import socket
import time
from collections.abc import Callable

import pytest
import torch
from reward_server import pictures, samples
from scripted_server import Answer, Request, serve_answers, serve_sockets

from flowfactory import ComponentConfig, RunError
from flowfactory.rewards.scoring import Rewards
from flowfactory_rewards import timed_requests
from flowfactory_rewards.http_client import Client
from flowfactory_rewards.pairwise import PairwiseConfig
from flowfactory_rewards.remote import RemoteConfig
from flowfactory_rewards.vlm import VlmConfig

MIB = 2**20
ENDLESS = 10**9  # times that something is said, unless who listens has gone
HEAD = b"HTTP/1.1 200 OK\r\n"
SHORT = {"retries": 0, "request_timeout": 0.4}

CONFIGS: dict[str, Callable[..., ComponentConfig]] = {
    "remote": RemoteConfig,
    "vlm": lambda **options: VlmConfig(model="m", **options),
    "pairwise": lambda **options: PairwiseConfig(model="m", **options),
}


def refusal(config: ComponentConfig, within: float) -> str:
    """What the reward's error says, in one line and ``within`` as many seconds, without the label."""
    begun = time.monotonic()
    with pytest.raises(RunError) as caught:
        Rewards({"mine": config})(samples(pictures(2)))
    assert time.monotonic() - begun < within
    said = str(caught.value)
    assert said.startswith("reward 'mine': ")
    assert "\n" not in said
    return said.removeprefix("reward 'mine': ")


def trickle(connection: socket.socket, head: bytes, piece: bytes) -> None:
    connection.recv(65536)
    connection.sendall(head)
    for _ in range(ENDLESS):
        time.sleep(0.05)
        connection.sendall(piece)


TRICKLES: dict[str, Callable[[socket.socket], None]] = {
    "the body": lambda connection: trickle(connection, HEAD + b"Content-Length: 100000\r\n\r\n", b"x"),
    "chunks": lambda connection: trickle(connection, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "the headers": lambda connection: trickle(connection, HEAD + b"X-Long: ", b"x"),
    "a body without end": lambda connection: trickle(connection, HEAD + b"\r\n", b"x"),
    "continue": lambda connection: trickle(connection, b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "an error": lambda connection: trickle(connection, b"HTTP/1.1 500 No\r\nContent-Length: 100000\r\n\r\n", b"x"),
    "nothing": lambda connection: time.sleep(2),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("what", TRICKLES)
def test_a_server_that_trickles_runs_out_of_time(name: str, what: str) -> None:
    """The time is for the whole answer: each of these says something every 0.05 s."""
    with serve_sockets(TRICKLES[what]) as url:
        said = refusal(CONFIGS[name](url=url, **SHORT), within=5)
    assert said == f"{url}: no answer in 1 try; the last: no answer within 0.4 s"


def test_a_server_that_does_not_take_the_request_runs_out_of_time() -> None:
    large = ("text/plain", bytes(64 * MIB))
    with serve_sockets(lambda connection: time.sleep(2)) as url:
        client = Client(RemoteConfig(url=url, **SHORT))
        begun = time.monotonic()
        with pytest.raises(RunError, match=r"no answer within 0\.4 s"):
            client.run_all([lambda stop: client.post("/score", large, stop)])
        assert time.monotonic() - begun < 5


def test_each_try_has_its_time() -> None:
    tries = []

    def answer(connection: socket.socket) -> None:
        tries.append(time.monotonic())
        trickle(connection, HEAD, b"X: y\r\n")

    with serve_sockets(answer) as url:
        said = refusal(CONFIGS["remote"](url=url, retries=1, request_timeout=0.3), within=6)
    assert said == f"{url}: no answer in 2 tries; the last: no answer within 0.3 s"
    assert len(tries) == 2


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_named_and_never_followed(name: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_NAME", "sesame-1234")
    with serve_answers(lambda asked: b"{}") as other:

        def send_away(asked: Request) -> Answer:
            return status, b"gone", {"Location": f"{other.url}/v2{asked.path}?key=sesame-1234"}

        with serve_answers(send_away) as server:
            said = refusal(CONFIGS[name](url=server.url, token_env="SECRET_NAME"), within=30)
            assert len(server.asked) == 1
    sent = f"{server.url}: answered {status}, a redirect to {other.url}/v2, which is not followed; give url the right address"
    assert said == sent
    assert other.asked == []


def test_a_redirect_within_the_host_is_named_by_its_whole_address() -> None:
    with serve_answers(lambda asked: (308, b"", {"Location": "/api/health"})) as server:
        said = refusal(RemoteConfig(url=server.url), within=30)
    assert f"a redirect to {server.url}/api, which" in said


def flood(head: bytes, piece: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head)
        for _ in range(ENDLESS if piece else 0):
            connection.sendall(piece)

    return answer


CHUNK = b"%x\r\n%b\r\n" % (MIB, bytes(MIB))
FLOODS = {
    "declared": flood(HEAD + b"Content-Length: 100000000\r\n\r\n", b""),
    "chunks": flood(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK),
    "no length": flood(HEAD + b"\r\n", bytes(MIB)),
    "an error": flood(b"HTTP/1.1 502 No\r\n\r\n", bytes(MIB)),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("what", FLOODS)
def test_an_answer_without_end_is_refused(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_requests, "LARGEST_ANSWER", 4 * MIB)
    with serve_sockets(FLOODS[what]) as url:
        said = refusal(CONFIGS[name](url=url), within=30)
    assert said == f"{url}: its answer is larger than 4 MiB; see what serves there"


@pytest.mark.parametrize("name", CONFIGS)
def test_an_answer_counts_as_large_as_it_is_unpacked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_requests, "LARGEST_ANSWER", 4 * MIB)
    packed = gzip.compress(bytes(5 * MIB))
    with serve_answers(lambda asked: (200, packed, {"Content-Encoding": "gzip"})) as server:
        said = refusal(CONFIGS[name](url=server.url), within=30)
    assert len(packed) < MIB / 8
    assert said == f"{server.url}: its answer is larger than 4 MiB; see what serves there"


def test_an_answer_packed_into_itself_is_not_unpacked() -> None:
    packed = gzip.compress(gzip.compress(b"{}"))
    with serve_answers(lambda asked: (200, packed, {"Content-Encoding": "gzip, gzip"})) as server:
        said = refusal(RemoteConfig(url=server.url), within=30)
    assert said == f"{server.url}: its answer is compressed more than once; see what serves there"


def test_an_answer_that_cannot_be_unpacked_is_named() -> None:
    with serve_answers(lambda asked: (200, b"no gzip", {"Content-Encoding": "gzip"})) as server:
        said = refusal(RemoteConfig(url=server.url, retries=0), within=30)
    assert re.match(rf"{server.url}: no answer in 1 try; the last: DecodingError: ", said)


def test_an_answer_in_gzip_is_read() -> None:
    scores = b'{"scores": [0.25, 0.5]}'
    health = b'{"reward": "r", "version": 1, "pointwise": true, "max_request": 1000000}'

    def answer(asked: Request) -> Answer:
        return 200, gzip.compress(scores if asked.path == "/score" else health), {"Content-Encoding": "gzip"}

    with serve_answers(answer) as server:
        found = Rewards({"mine": RemoteConfig(url=server.url)})(samples(pictures(2)))["mine"]
    assert torch.equal(found, torch.tensor([0.25, 0.5], dtype=found.dtype))


def test_scores_that_are_too_deep_are_named() -> None:
    health = b'{"reward": "r", "version": 1, "pointwise": true, "max_request": 1000000}'
    with serve_answers(lambda asked: b"[" * 10**5 if asked.path == "/score" else health) as server:
        said = refusal(RemoteConfig(url=server.url), within=30)
    assert said.startswith(f"{server.url}: answered no JSON: ")


def test_a_redirect_to_nowhere_is_an_answer_like_others() -> None:
    with serve_answers(lambda asked: (301, b'{"error": "moved"}', {})) as server:
        assert refusal(RemoteConfig(url=server.url), within=30) == f"{server.url}: answered 301, moved"


def test_a_redirect_to_what_is_no_address_is_named() -> None:
    with serve_answers(lambda asked: (302, b"", {"Location": "http://[::bad/"})) as server:
        said = refusal(RemoteConfig(url=server.url), within=30)
    assert "answered 302, a redirect to an address that cannot be read, which is not followed" in said
