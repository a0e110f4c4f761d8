"""What strangers send to ``flowfactory serve``, and do not send."""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import torch
from odd_reward import weighted
from reward_server import Served, pictures, samples, serve_reward, serve_rewards, wait_until

from flowfactory.rewards.wire import build_multipart, encode_request

TOKEN = "correct-horse"
SHORT_TIMES = """
from flowfactory.rewards.serving import bodies, limited_log, protocol, refusals
protocol.HEAD, protocol.REST, protocol.UNREAD = 1, 1, 2
bodies.SILENCE, bodies.ARRIVAL, refusals.LINGER = 1, 2, 1
limited_log.WINDOW = 3
"""
HOST = b"Host: x\r\n"
POST = b"POST /score HTTP/1.1\r\n" + HOST


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Served, ...]]:
    """Two with short times and little room, one of which asks for a token."""
    room = ("--max-request", "1", "--max-waiting", "1")
    with serve_rewards([room, (*room, "--token-env", "T")], environment={"T": TOKEN}, before=SHORT_TIMES) as found:
        yield found


@pytest.fixture(scope="module")
def server(servers: tuple[Served, ...]) -> Served:
    return servers[0]


@pytest.fixture(scope="module")
def guarded(servers: tuple[Served, ...]) -> Served:
    return servers[1]


def connect(server: Served, source: str = "127.0.0.1") -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), 30, (source, 0))


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other end closes."""
    found = b""
    try:
        while piece := connection.recv(2**16):
            found += piece
    except ConnectionError:
        pass
    return found


def exchange(server: Served, *pieces: bytes) -> bytes:
    with connect(server) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return read_all(connection)


def status_of(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    assert found, answer
    return int(found[1])


def answers_others(server: Served, headers: dict[str, str] | None = None) -> bool:
    content_type, body = build_multipart(encode_request(samples(pictures(2)), "raw"))
    told = {"Content-Type": content_type, **(headers or {})}
    answer = httpx2.post(f"{server.url}/score", content=body, headers=told, timeout=60)
    return answer.status_code == 200 and torch.equal(torch.tensor(answer.json()["scores"]), weighted(pictures(2)))


def drip(connection: socket.socket, piece: bytes) -> None:
    """Send ``piece`` five times a second until the other end closes, or twenty seconds."""
    for _ in range(100):
        ready, _, _ = select.select([connection], [], [], 0.2)
        try:
            if ready and not connection.recv(2**16):
                return
            connection.sendall(piece)
        except ConnectionError:
            return
    raise AssertionError("the other end did not close")


SLOW: dict[str, tuple[bytes, bytes]] = {
    "nothing at all": (b"", b""),
    "half a request line": (b"POST /sco", b""),
    "a request line that trickles": (b"GET /", b"a"),
    "half the headers": (POST, b""),
    "headers that trickle": (POST + b"A: ", b"a"),
    "a second request that does not come whole": (b"GET /health HTTP/1.1\r\n" + HOST + b"\r\nGET /hea", b""),
    "a second request that trickles": (b"GET /health HTTP/1.1\r\n" + HOST + b"\r\nGET /", b"a"),
    "a body that nobody wants": (b"GET /health HTTP/1.1\r\n" + HOST + b"Content-Length: 9999\r\n\r\n", b"a"),
    "a body for nobody": (b"POST /nothing HTTP/1.1\r\n" + HOST + b"Content-Length: 9999\r\n\r\n", b"a"),
    "half a body": (POST + b"Content-Length: 9999\r\n\r\nhalf", b""),
    "a body that trickles": (POST + b"Content-Length: 9999\r\n\r\n", b"a"),
    "chunks that trickle": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "a chunk's size that trickles": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "trailers that trickle": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: ", b"a"),
}


@pytest.mark.parametrize("which", [0, 1], ids=["without a token", "with one"])
def test_whoever_sends_slowly_is_closed_within_its_time(servers: tuple[Served, ...], which: int) -> None:
    def seconds(begin: bytes, trickle: bytes) -> float:
        begun = time.monotonic()
        with connect(servers[which]) as connection:
            connection.sendall(begin)
            if trickle:
                drip(connection, trickle)
            else:
                read_all(connection)
        return time.monotonic() - begun

    with ThreadPoolExecutor(len(SLOW)) as pool:
        found = {name: pool.submit(seconds, *how) for name, how in SLOW.items()}
        # a second to send, two for a body, and one to go
        late = {name: each.result() for name, each in found.items() if each.result() > 6}
    assert not late
    assert answers_others(servers[which], {"Authorization": f"Bearer {TOKEN}"})


def test_a_slow_body_is_told_why(server: Served) -> None:
    answer = exchange(server, POST + b"Content-Length: 9999\r\n\r\nhalf")
    assert status_of(answer) == 408
    assert json.loads(answer.split(b"\r\n\r\n")[1]) == {"error": "nothing came for 1 s"}


def test_whoever_does_not_read_the_answers_is_closed(server: Served) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = server.url.removeprefix("http://").split(":")
        connection.connect((host, int(port)))
        connection.setblocking(False)
        watched = select.poll()
        watched.register(connection, select.POLLHUP | select.POLLERR)
        end = time.monotonic() + 30
        while not watched.poll(50):
            assert time.monotonic() < end
            try:
                connection.send((b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") * 1000)
            except BlockingIOError:
                pass
            except ConnectionError:
                break
    assert answers_others(server)


BOTH = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
MALFORMED: dict[str, bytes] = {
    "a length and chunks": POST + BOTH,
    "the same elsewhere": b"GET /nothing HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a list of lengths": POST + b"Content-Length: 5, 6\r\n\r\nhello",
    "a negative length": POST + b"Content-Length: -5\r\n\r\n",
    "a length with a sign": POST + b"Content-Length: +5\r\n\r\nhello",
    "a length of many digits": POST + b"Content-Length: " + b"9" * 100 + b"\r\n\r\n",
    "two encodings": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "an unknown encoding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a chunk that is no number": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a chunk longer than it says": POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "a whole URL": b"GET http://127.0.0.1/health HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
    "a tunnel": b"CONNECT evil:443 HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a method with a NUL": b"GE\0T /health HTTP/1.1\r\n" + HOST + b"\r\n",
    "a header with a NUL": b"GET /health HTTP/1.1\r\n" + HOST + b"A: \0\r\n\r\n",
    "a header with a space before its colon": b"GET /health HTTP/1.1\r\n" + HOST + b"A : b\r\n\r\n",
    "a bare line feed and a space": b"GET /health HTTP/1.1\n continued\n\n",
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(160),
    "a long line": b"GET /" + b"a" * 100_000,
    "a long header": b"GET /health HTTP/1.1\r\n" + HOST + b"A: " + b"a" * 100_000,
    "a long header at once": b"GET /health HTTP/1.1\r\n" + HOST + b"A: " + b"a" * 20_000 + b"\r\n\r\n",
    "many headers": b"GET /health HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 100_000,
    "a long chunk extension": POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 100_000,
    "a websocket": POST + b"Connection: upgrade, close\r\nUpgrade: websocket\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_refused_or_closed(server: Served, name: str) -> None:
    try:
        answer = exchange(server, MALFORMED[name])
    except ConnectionError:
        return  # closed while it was sent
    assert not answer or 400 <= status_of(answer) < 500


def test_after_all_of_them_others_are_answered(server: Served) -> None:
    assert answers_others(server)


def test_requests_one_after_the_other_without_waiting_are_answered_in_order(server: Served) -> None:
    one = b"GET /health HTTP/1.1\r\n" + HOST
    answer = exchange(server, (one + b"\r\n") * 9 + one + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 10


def answer_to_headers(server: Served, head: bytes) -> tuple[bytes, float]:
    """The answer to a request whose body never comes, and after how many seconds it was there."""
    with connect(server) as connection:
        begun = time.monotonic()
        connection.sendall(head)
        found = b""
        while b"}" not in found:
            piece = connection.recv(2**16)
            assert piece, found
            found += piece
        return found, time.monotonic() - begun


def test_the_token_is_looked_at_before_the_body_comes(guarded: Served) -> None:
    answer, seconds = answer_to_headers(guarded, POST + b"Authorization: Bearer wrong\r\nContent-Length: 1000000\r\n\r\n")
    assert (status_of(answer), seconds < 1) == (401, True)


def test_a_request_for_which_there_is_no_room_is_told_before_its_body_comes(server: Served) -> None:
    with connect(server) as slow:
        slow.sendall(POST + b"Content-Length: 700000\r\n\r\n")
        wait_until(lambda: server.metric("held_bytes") == 700000)
        for more in (b"", b"Expect: 100-continue\r\n"):
            answer, seconds = answer_to_headers(server, POST + b"Content-Length: 500000\r\n" + more + b"\r\n")
            assert (status_of(answer), seconds < 1) == (503, True)
            assert b"the requests that wait already fill the memory for them" in answer
            assert re.search(rb"\r\nretry-after: \d+\r\n", answer)
        assert answers_others(server)  # for which there is
    wait_until(lambda: server.metric("held_bytes") == 0)


def test_whoever_expects_to_be_told_to_continue_is(server: Served) -> None:
    content_type, body = build_multipart(encode_request(samples(pictures(2)), "raw"))
    head = f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(POST + head.encode())
        assert connection.recv(2**16).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert status_of(read_all(connection)) == 200


def test_web_pages_may_not_ask_without_a_token(server: Served, guarded: Served) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:8100"):
        answer = httpx2.post(f"{server.url}/score", content=b"x", headers={"Origin": origin})
        assert answer.status_code == 403
        assert answer.json()["error"].startswith("web pages may not ask without a token; serve with --token-env NAME")
    headers = {"Origin": "https://ours.example", "Authorization": f"Bearer {TOKEN}"}
    assert answers_others(guarded, headers)


def test_a_request_for_another_protocol_is_answered_in_this_one(server: Served) -> None:
    for protocol in (b"websocket", b"h2c"):
        head = b"GET /health HTTP/1.1\r\n" + HOST + b"Connection: close, upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n"
        assert status_of(exchange(server, head)) == 200


def test_what_is_logged_about_strangers_is_little(guarded: Served) -> None:
    """The last one here, which leaves no server."""
    exchange(guarded, b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close, upgrade\r\nUpgrade: websocket\r\n\r\n")
    for _ in range(60):
        exchange(guarded, b"\x1b[31mGET / HTTP/1.1\r\n\r\n")
    time.sleep(4)
    guarded.stop()
    assert guarded.process.stdout
    said = guarded.process.stdout.read().splitlines()
    assert "\x1b" not in "".join(said)
    assert "websocket" not in "".join(said).lower()
    assert 20 <= said.count("warning: Invalid HTTP request received.") <= 80
    assert any(re.fullmatch(r"warning: \d+ more lines were left out within 3 s", line) for line in said)
    assert len(said) < 60


@pytest.fixture(scope="module")
def narrow() -> Iterator[Served]:
    """One that may open 148 files, and so has 20 connections, 15 for one address."""
    with serve_reward(before="import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (148, 148))") as one:
        yield one


def open_until_refused(server: Served, source: str, tries: int) -> tuple[list[socket.socket], list[bytes]]:
    """The connections that stay open, and what the others are told."""
    found = [connect(server, source) for _ in range(tries)]
    time.sleep(1)
    sent_away = select.select(found, [], [], 0)[0]
    told = [read_all(each) for each in sent_away]
    for each in sent_away:
        each.close()
    return [each for each in found if each not in sent_away], told


def test_connections_are_bounded_for_each_address_and_in_all(narrow: Served) -> None:
    first, told = open_until_refused(narrow, "127.0.0.1", 30)
    second, more = open_until_refused(narrow, "127.0.0.2", 30)
    try:
        assert (len(first), len(second)) == (15, 5)
        for answer in told + more:
            assert status_of(answer) == 503
            assert b"\r\nRetry-After: 5\r\n" in answer
            assert answer.endswith(b'{"error": "too many connections are open"}')
    finally:
        for each in first[1:] + second:
            each.close()
    wait_until(lambda: httpx2.get(f"{narrow.url}/health").status_code == 200)
    first[0].close()
    assert answers_others(narrow)


def test_a_limit_of_descriptors_does_not_end_the_service(narrow: Served) -> None:
    for _ in range(5):
        opened = [connect(narrow, f"127.0.0.{3 + i % 8}") for i in range(80)]
        for each in opened:
            each.close()
    wait_until(lambda: httpx2.get(f"{narrow.url}/health").status_code == 200)
    assert answers_others(narrow)
