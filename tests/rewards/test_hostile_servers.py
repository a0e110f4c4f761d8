"""Whatever is behind a URL, each reward over HTTP ends in bounded time, with one line that names the URL."""

from __future__ import annotations

import gzip
import json
import re
import resource
import socket
import threading
import time
import zlib
from collections.abc import Callable
from itertools import product

import pytest
import torch
from reward_server import pictures, samples
from scripted_server import Answer, Request, serve_answers, serve_sockets

from flowfactory import ComponentConfig, RunError
from flowfactory.rewards.scoring import Rewards
from flowfactory_rewards.chat_client import largest_answer as chat_answer
from flowfactory_rewards.http_client import Client
from flowfactory_rewards.pairwise import PairwiseConfig
from flowfactory_rewards.remote import RemoteConfig, largest_answer
from flowfactory_rewards.vlm import VlmConfig

MIB = 2**20
ENDLESS = 10**9  # times that something is said, unless who listens has gone
HEALTH = b'{"reward": "r", "version": 1, "pointwise": true, "max_request": 1000000}'
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
    "the body": lambda connection: trickle(connection, HEAD + b"Content-Length: 1000\r\n\r\n", b"x"),
    "chunks": lambda connection: trickle(connection, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "the headers": lambda connection: trickle(connection, HEAD + b"X-Long: ", b"x"),
    "a body without end": lambda connection: trickle(connection, HEAD + b"\r\n", b"x"),
    "continue": lambda connection: trickle(connection, b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "an error": lambda connection: trickle(connection, b"HTTP/1.1 500 No\r\nContent-Length: 1000\r\n\r\n", b"x"),
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
            client.run_all([lambda stop: client.post("/score", large, stop, MIB)])
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
    "declared to be anything": flood(HEAD + b"Content-Length: 99999999999999999999\r\n\r\n", b""),
    "chunks": flood(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK),
    "no length": flood(HEAD + b"\r\n", bytes(MIB)),
}
TINY_CHUNKS = flood(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 10**4)
# of what 2 scores, and the probabilities of 16 tokens among 20 each, may take
LARGEST = {"remote": r"64(\.2)? KiB", "vlm": r"1\.33 MiB", "pairwise": r"1\.33 MiB"}


@pytest.mark.parametrize(("what", "name"), [*product(FLOODS, CONFIGS), ("tiny chunks", "remote")])
def test_an_answer_is_read_as_far_as_its_request_implies(name: str, what: str) -> None:
    with serve_sockets(FLOODS.get(what, TINY_CHUNKS)) as url:
        said = refusal(CONFIGS[name](url=url), within=30)
    assert re.fullmatch(f"{url}: its answer is larger than {LARGEST[name]}; see what serves there", said)


def test_more_scores_may_take_more() -> None:
    assert largest_answer(1) < 70_000
    longest = json.dumps({"scores": [-1.7976931348623157e308] * 10**5}, indent=8).encode()
    assert len(longest) < largest_answer(10**5) < 20 * MIB
    answers = {"/health": HEALTH, "/score": json.dumps({"scores": [0.5] * 900, "of": " " * 10**5}).encode()}
    with serve_answers(lambda asked: answers[asked.path]) as server:
        rewards = Rewards({"mine": RemoteConfig(url=server.url, batch_size=900, encoding="raw8")})
        assert rewards(samples(pictures(900, 4)))["mine"].tolist() == [0.5] * 900


def test_more_tokens_may_take_more() -> None:
    asked = {"max_tokens": 16, "top_logprobs": 20}
    assert chat_answer(asked) == MIB + 16 * 21 * 1024
    assert chat_answer({"max_completion_tokens": 1000}) == MIB + 1000 * 1024
    for more in ({"n": 4}, {"max_tokens": None}, {"max_tokens": 10**6}, {"top_logprobs": "many"}):
        assert chat_answer(asked | more) == 64 * MIB


@pytest.mark.parametrize("name", CONFIGS)
def test_an_error_without_end_is_read_as_far_as_its_sentence(name: str) -> None:
    """What begins with a 502 may pass, however long its page is."""
    with serve_sockets(flood(b"HTTP/1.1 502 No\r\n\r\n", b"no " * 10**5)) as url:
        said = refusal(CONFIGS[name](url=url, retries=1), within=30)
    assert re.fullmatch(rf"{url}: no answer in 2 tries; the last: 502, '(no )+n?o?…'", said)
    assert len(said) < 300


BOMB = gzip.compress(bytes(200 * MIB))
RAW = zlib.compress(bytes(200 * MIB))


def packed(content: bytes, name: str) -> Callable[[Request], Answer]:
    return lambda asked: (200, content, {"Content-Encoding": name})


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("content", "packing"), [(BOMB, "gzip"), (RAW, "deflate")], ids=["gzip", "deflate"])
def test_an_answer_counts_as_large_as_it_is_unpacked(name: str, content: bytes, packing: str) -> None:
    health = dict.fromkeys(["/health", "/models"], (200, HEALTH, {}))
    with serve_answers(lambda asked: health.get(asked.path) or packed(content[: 300 * 1024], packing)(asked)) as server:
        before = peak_memory()
        # 64 KiB of it, and no more, are looked at by remote, which is told enough by its length
        said = refusal(CONFIGS[name](url=server.url), within=30)
        assert peak_memory() - before < 64 * MIB
        assert server.asked[-1].headers["accept-encoding"] == "identity"
    assert re.fullmatch(f"{server.url}: its answer is larger than {LARGEST[name]}; see what serves there", said)


def test_a_small_bomb_is_not_unpacked_further_than_it_may_be() -> None:
    small = gzip.compress(bytes(50 * MIB))
    assert len(small) < 64 * 1024
    with serve_answers(packed(small, "gzip")) as server:
        said = refusal(RemoteConfig(url=server.url), within=30)
    assert said == f"{server.url}: its answer is larger than 64 KiB; see what serves there"


def test_what_follows_a_packed_answer_for_ever_is_not_kept() -> None:
    head = HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"{}")
    with serve_sockets(flood(head, bytes(MIB))) as url:
        before = peak_memory()
        said = refusal(RemoteConfig(url=url), within=30)
        assert peak_memory() - before < 64 * MIB
    assert said == f"{url}: its answer is larger than 64 KiB; see what serves there"


def peak_memory() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("packing", ["gzip, gzip", "br", "zstd", "\x1b[31m"])
def test_an_answer_that_is_packed_otherwise_is_named(packing: str) -> None:
    with serve_answers(packed(gzip.compress(gzip.compress(b"{}")), packing)) as server:
        said = refusal(RemoteConfig(url=server.url), within=30)
    assert said == f"{server.url}: its answer is packed as {packing!r}, which was not asked for; see what serves there"


def test_an_answer_that_cannot_be_unpacked_is_named() -> None:
    with serve_answers(packed(b"no gzip", "gzip")) as server:
        said = refusal(RemoteConfig(url=server.url, retries=0), within=30)
    assert re.match(rf"{server.url}: its answer cannot be unpacked: .*; see what serves there$", said)


def test_an_error_that_cannot_be_unpacked_is_an_error() -> None:
    with serve_answers(lambda asked: (404, b"no gzip", {"Content-Encoding": "gzip"})) as server:
        assert refusal(RemoteConfig(url=server.url), within=30) == f"{server.url}: answered 404, ''"


BROKEN: dict[str, tuple[Callable[[socket.socket], None], str]] = {
    "headers without end": (flood(HEAD, b"X-Many: 1\r\n" * 10**5), "RemoteProtocolError: "),
    "one header without end": (flood(HEAD + b"X-Long: ", bytes([65]) * MIB), "RemoteProtocolError: "),
    "trailers without end": (
        flood(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Many: 1\r\n" * 10**5),
        "RemoteProtocolError: ",
    ),
    "a chunk's extension without end": (
        flood(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * MIB),
        "RemoteProtocolError: ",
    ),
    "continue, as fast as it can": (flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 10**4), "no answer within 0.4 s"),
    "no HTTP": (flood(b"<h1>Hello</h1>\r\n" + bytes(range(32)) * 3000, b""), "RemoteProtocolError: "),
    "no HTTP, without end": (flood(b"", b"\x1b[31mred" * 10**5), "RemoteProtocolError: "),
    "two lengths": (flood(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", b""), "RemoteProtocolError: "),
    "a length that is none": (flood(HEAD + b"Content-Length: -1\r\n\r\nx", b""), "RemoteProtocolError: "),
    "a length of many digits": (flood(HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nx", b""), "RemoteProtocolError: "),
    "less than its length": (flood(HEAD + b"Content-Length: 100\r\n\r\n{}", b""), "RemoteProtocolError: "),
    "a chunk that is none": (flood(HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", b""), "RemoteProtocolError: "),
    "an upgrade": (flood(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", b""), "RemoteProtocolError: "),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_answer_is_a_failure_in_few_words(what: str) -> None:
    answer, reason = BROKEN[what]
    before = peak_memory()
    with serve_sockets(answer) as url:
        said = refusal(RemoteConfig(url=url, **SHORT), within=10)
    assert said.startswith(f"{url}: no answer in 1 try; the last: {reason}")
    assert len(said) < 400
    assert said.isprintable()
    assert peak_memory() - before < 64 * MIB


def test_an_answer_that_was_there_before_its_request_is_none() -> None:
    """A server that answers twice is one behind from then on: none of its answers may count for the next request."""

    def answer(connection: socket.socket) -> None:
        while body := read_body(connection):
            connection.sendall((HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)) * 2)

    with serve_sockets(answer) as url:
        client = Client(RemoteConfig(url=url, retries=0))
        questions = [b"%d?" % i for i in range(6)]
        assert [client.post("/x", ("text/plain", each), threading.Event(), MIB)[1] for each in questions] == questions


def read_body(connection: socket.socket) -> bytes:
    """That of a request, which ends with '?'; empty when no more come."""
    got = b""
    while not got.endswith(b"?"):
        piece = connection.recv(65536)
        if not piece:
            return b""
        got += piece
    return got.partition(b"\r\n\r\n")[2]


def test_an_answer_in_gzip_is_read() -> None:
    scores = b'{"scores": [0.25, 0.5]}'

    def answer(asked: Request) -> Answer:
        return 200, gzip.compress(scores if asked.path == "/score" else HEALTH), {"Content-Encoding": "gzip"}

    with serve_answers(answer) as server:
        found = Rewards({"mine": RemoteConfig(url=server.url)})(samples(pictures(2)))["mine"]
    assert torch.equal(found, torch.tensor([0.25, 0.5], dtype=found.dtype))


def test_scores_that_are_too_deep_are_named() -> None:
    with serve_answers(lambda asked: b"[" * 60_000 if asked.path == "/score" else HEALTH) as server:
        said = refusal(RemoteConfig(url=server.url), within=30)
    assert said.startswith(f"{server.url}: answered no JSON: ")


def test_a_redirect_to_nowhere_is_an_answer_like_others() -> None:
    with serve_answers(lambda asked: (301, b'{"error": "moved"}', {})) as server:
        assert refusal(RemoteConfig(url=server.url), within=30) == f"{server.url}: answered 301, moved"


def test_a_redirect_to_what_is_no_address_is_named() -> None:
    with serve_answers(lambda asked: (302, b"", {"Location": "http://[::bad/"})) as server:
        said = refusal(RemoteConfig(url=server.url), within=30)
    assert "answered 302, a redirect to an address that cannot be read, which is not followed" in said
