from __future__ import annotations

import gc
import itertools
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from scripted_server import Answer, Drop, Request, ScriptedServer, serve_answers

from flowfactory import RunError, UserError
from flowfactory_rewards import http_client
from flowfactory_rewards.http_client import Client, ClientConfig, error_message

BODY = ("text/plain", b"?")
LIMIT = 2**20  # bytes of an answer


class Options(ClientConfig):
    def build(self, label: str) -> object:
        return Client(self)


def made(*servers: ScriptedServer, **options: Any) -> Client:
    return Client(Options(url=[server.url for server in servers], **options))


def post(client: Client, body: tuple[str, bytes] = BODY) -> bytes:
    return client.post("/x", body, threading.Event(), LIMIT)[1]


def in_turn(*answers: Answer | bytes | type[Drop]) -> Callable[[Request], Answer | bytes]:
    """Each of ``answers`` once, and the last for ever."""
    left = list(answers)

    def answer(_: Request) -> Answer | bytes:
        given = left.pop(0) if len(left) > 1 else left[0]
        if given is Drop:
            raise Drop
        return given  # type: ignore[return-value]

    return answer


def dead() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{found.getsockname()[1]}"


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_BACKOFF", 0.05)


@pytest.mark.parametrize(
    "failure",
    [
        Drop,
        *((status, b"", {}) for status in (408, 429, 502, 503, 504)),
        (200, b"half", {"Content-Length": "8"}),
    ],
    ids=lambda failure: "drop" if failure is Drop else str(failure[0]),
)
def test_what_may_pass_is_tried_again(failure: Any) -> None:
    closing = (*failure[:2], {**failure[2], "Connection": "close"}) if failure is not Drop else Drop
    with serve_answers(in_turn(closing, closing, b"at last")) as server:
        assert post(made(server)) == b"at last"
        assert len(server.asked) == 3


@pytest.mark.parametrize("status", [201, 301, 400, 401, 403, 404, 413, 422, 500])
def test_what_will_not_pass_is_not(status: int) -> None:
    with serve_answers(in_turn((status, b'{"error": "that is so"}', {}))) as server:
        with pytest.raises(RunError, match=rf"^{server.url}: answered {status}, that is so"):
            post(made(server))
        assert len(server.asked) == 1


def test_a_failure_that_outlasts_its_tries_names_url_tries_and_reason() -> None:
    with serve_answers(in_turn((502, b"<h1>Bad gateway</h1>", {}))) as server:
        with pytest.raises(RunError, match=rf"^{server.url}: no answer in 3 tries; the last: 502, '<h1>Bad gateway</h1>'$"):
            post(made(server, retries=2))
        assert len(server.asked) == 3


def test_a_dead_server_is_named() -> None:
    url = dead()
    with pytest.raises(RunError, match=rf"^{url}: no answer in 1 try; the last: ConnectError: .*[Cc]onnection"):
        post(Client(Options(url=url, retries=0)))


def test_a_slow_server_is_named() -> None:
    release = threading.Event()

    def slow(_: Request) -> bytes:
        release.wait(60)
        return b""

    with serve_answers(slow) as server:
        with pytest.raises(RunError, match=rf"^{server.url}: no answer in 2 tries; the last: no answer within 0\.2 s$"):
            post(made(server, retries=1, request_timeout=0.2))
        release.set()


def test_rests_double() -> None:
    with serve_answers(in_turn((502, b"", {}), (502, b"", {}), (502, b"", {}), b"")) as server:
        post(made(server))
        times = [asked.when for asked in server.asked]
        rests = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert all(rest >= least for rest, least in zip(rests, (0.05, 0.1, 0.2), strict=True))


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_left_alone_for_as_long_as_it_asks_and_that_is_no_failure(status: int) -> None:
    busy = (status, b"", {"Retry-After": "1"})
    with serve_answers(in_turn(busy, busy, b"done")) as server:
        assert post(made(server, retries=0)) == b"done"
        times = [asked.when for asked in server.asked]
        assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("body", [b"Internal Server Error", b"<h1>500</h1>", b"", b'{"error": ""}'])
def test_a_bare_500_may_pass_as_those_of_proxies_do(body: bytes) -> None:
    with serve_answers(in_turn((500, body, {}), b"at last")) as server:
        assert post(made(server)) == b"at last"


@pytest.mark.parametrize("clients", [1, 3])
def test_a_server_that_lets_few_wait_is_kept_busy_all_the_same(clients: int) -> None:
    """Those that it sends away wait, and not those that it takes."""
    room = threading.Semaphore(2)

    def answer(asked: Request) -> Answer | bytes:
        if not room.acquire(blocking=False):
            return 503, b"", {"Retry-After": "1"}
        time.sleep(0.02)
        room.release()
        return asked.body

    with serve_answers(answer) as server, ThreadPoolExecutor(clients) as pool:
        begun = time.monotonic()
        lots = [pool.submit(ask_often, made(server, requests=8), 40) for _ in range(clients)]
        assert all(lot.result() == [b"%d" % i for i in range(40)] for lot in lots)
        seconds = time.monotonic() - begun
        refused = len(server.asked) - 40 * clients
        assert refused <= 8 * clients * (1 + seconds) + 40 * clients  # each once a second, or in the place of one answered
        assert seconds < 8 * clients  # instead of two within each second


def ask_often(client: Client, count: int) -> list[bytes]:
    bodies = [b"%d" % i for i in range(count)]
    return client.run_all(
        [lambda stop, body=body: client.post("/x", ("text/plain", body), stop, LIMIT)[1] for body in bodies]  # type: ignore[misc]
    )


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_authorities_that_are_not_there_are_named(variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "gone"))
    with pytest.raises(UserError, match=rf"^{variable} {tmp_path}/gone: [Nn]o such .*; name another.*, or unset the variable$"):
        Client(Options(url="http://127.0.0.1:1"))
    (tmp_path / "text").write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "text"))
    with pytest.raises(UserError, match=r"^SSL_CERT_FILE .*/text: expected certificates in PEM, which begin with -----BEGIN$"):
        Client(Options(url="http://127.0.0.1:1"))


def test_patience_has_an_end() -> None:
    with serve_answers(in_turn((503, b'{"error": "64 requests wait already"}', {"Retry-After": "0.2"}))) as server:
        begun = time.monotonic()
        with pytest.raises(RunError, match=rf"^{server.url}: busy for 1 s; the last answer: 503, 64 requests wait already$"):
            post(made(server, patience=0.8))
        assert time.monotonic() - begun < 5
        assert 2 <= len(server.asked) <= 6


@pytest.mark.parametrize("asked", ["7", "1e300", "inf", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_no_server_is_left_alone_for_longer_than_there_is_patience(asked: str) -> None:
    busy = (429, b"", {"Retry-After": asked})
    with serve_answers(in_turn(busy, b"done")) as server:
        assert post(made(server, patience=0.3)) == b"done"
    with serve_answers(in_turn(busy)) as server:
        with pytest.raises(RunError, match=rf"^{server.url}: busy for 0 s; the last answer: 429, ''$"):
            post(made(server, patience=0.3))
        assert len(server.asked) == 2


def test_what_it_asks_for_may_be_a_date_or_nonsense() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < http_client._retry_after(soon) <= 100
    assert http_client._retry_after("3") == 3
    nonsense = ["soon", "-5", "GMT", "", "nan", "-inf", "\x00", "1" * 400 + "x", "Sun, 06 Nov 1994 08:49:37 GMT"]
    nonsense += ["Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "Fri, 99 Foo 2026 99:99:99 GMT"]
    assert [http_client._retry_after(text) for text in (None, *nonsense)] == [0] * 12


@pytest.mark.parametrize("asked", ["-1", "nan", "soon", ""])
def test_nonsense_that_is_asked_for_counts_as_a_failure(asked: str) -> None:
    said = pytest.raises(RunError, match=r"no answer in 3 tries; the last: 503, ''$")
    with serve_answers(in_turn((503, b"", {"Retry-After": asked}))) as server, said:
        post(made(server, retries=2))


def test_a_client_that_nobody_holds_leaves_no_thread_and_no_connection() -> None:
    def alive() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "requests" and thread not in before]

    before = threading.enumerate()
    with serve_answers(in_turn(b"")) as server:
        one = made(server)
        post(one)
        (thread,) = alive()
        del one
        gc.collect()
        thread.join(30)
    assert not alive()


def test_connections_are_kept() -> None:
    with serve_answers(in_turn(b"")) as server:
        one = made(server, requests=3)
        for _ in range(4):
            one.run_all([lambda stop: one.post("/x", BODY, stop, LIMIT) for _ in range(10)])
        assert len(server.asked) == 40
        assert server.connections <= 3


def test_requests_are_sent_at_once_and_results_are_in_order() -> None:
    together = threading.Barrier(4)

    def answer(asked: Request) -> bytes:
        together.wait(60)  # until four are here
        return asked.body

    with serve_answers(answer) as server:
        one = made(server, requests=4)
        bodies = [b"%d" % i for i in range(12)]
        calls = [lambda stop, body=body: one.post("/x", ("text/plain", body), stop, LIMIT)[1] for body in bodies]  # type: ignore[misc]
        assert one.run_all(calls) == bodies
        assert server.most_at_once == 4


def test_the_first_error_ends_all_that_has_not_begun() -> None:
    with serve_answers(in_turn((422, b'{"error": "no"}', {}))) as server:
        one = made(server, requests=2)
        with pytest.raises(RunError, match="answered 422, no"):
            one.run_all([lambda stop: one.post("/x", BODY, stop, LIMIT) for _ in range(100)])
        assert len(server.asked) < 100


def test_several_urls_share_the_requests() -> None:
    with serve_answers(in_turn(b"a")) as a, serve_answers(in_turn(b"b")) as b, serve_answers(in_turn(b"c")) as c:
        one = made(a, b, c, requests=1)
        for _ in range(30):
            post(one)
        assert [len(server.asked) for server in (a, b, c)] == [10, 10, 10]


def test_a_slow_one_gets_fewer() -> None:
    release = threading.Event()

    def slow(_: Request) -> bytes:
        release.wait(60)
        return b""

    with serve_answers(slow) as tortoise, serve_answers(in_turn(b"")) as hare:
        one = made(tortoise, hare, requests=2)

        def call(stop: threading.Event) -> None:
            one.post("/x", BODY, stop, LIMIT)
            if len(hare.asked) == 20:
                release.set()

        one.run_all([call] * 21)
        assert (len(tortoise.asked), len(hare.asked)) == (1, 20)


def test_one_that_fails_rests_while_another_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_BACKOFF", 1000)
    monkeypatch.setattr(http_client, "LONGEST_BACKOFF", 1000)
    with serve_answers(in_turn(Drop)) as bad, serve_answers(in_turn(b"good")) as good:
        one = made(bad, good, requests=4, retries=1)
        assert one.run_all([lambda stop: one.post("/x", BODY, stop, LIMIT)[1] for _ in range(50)]) == [b"good"] * 50
        assert 1 <= len(bad.asked) <= 4  # those that were sent before the first came back


def test_requests_that_fail_together_are_one_failure() -> None:
    together = threading.Barrier(6)
    failures = []

    def answer(asked: Request) -> bytes:
        if len(server.asked) <= 6:
            together.wait(60)
            raise Drop
        failures.append(one._hosts[0].failures)
        return b""

    with serve_answers(answer) as server:
        one = made(server, requests=6)
        one.run_all([lambda stop: one.post("/x", BODY, stop, LIMIT) for _ in range(6)])
        assert failures[0] == 1  # and the rest was the first of those that double
        assert len(server.asked) == 12


def test_one_that_comes_back_is_used_again() -> None:
    with serve_answers(in_turn(Drop, Drop, b"back")) as lame, serve_answers(in_turn((502, b"", {}))) as bad:
        one = made(lame, bad, requests=1, retries=50)
        assert [post(one) for _ in range(3)] == [b"back"] * 3


def test_all_requests_together_try_a_dead_server_as_often_as_one_would() -> None:
    with serve_answers(in_turn((502, b"", {}))) as server:
        one = made(server, requests=50, retries=2)
        with pytest.raises(RunError, match=rf"^{server.url}: no answer in 3 tries; the last: 502, ''$"):
            one.run_all([lambda stop: one.post("/x", BODY, stop, LIMIT) for _ in range(50)])
        assert len(server.asked) <= 52  # all at once, and then one after each rest


def listening(port: int = 0) -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("127.0.0.1", port))
    found.listen(16)
    return found


def answer_once(listener: socket.socket, body: bytes) -> None:
    """Take one connection and its request, and close all."""
    with listener:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def test_a_server_that_was_there_is_waited_for_beyond_the_tries() -> None:
    first = listening()
    port = first.getsockname()[1]
    client = Client(Options(url=f"http://127.0.0.1:{port}", retries=0, patience=60))
    threading.Thread(target=answer_once, args=(first, b"before"), daemon=True).start()
    assert post(client) == b"before"
    came_back = threading.Timer(0.5, lambda: answer_once(listening(port), b"after"))
    came_back.start()
    assert post(client) == b"after"
    came_back.join()


def test_it_is_not_waited_for_for_ever() -> None:
    first = listening()
    url = f"http://127.0.0.1:{first.getsockname()[1]}"
    client = Client(Options(url=url, retries=0, patience=0.5))
    threading.Thread(target=answer_once, args=(first, b"before"), daemon=True).start()
    assert post(client) == b"before"
    begun = time.monotonic()
    with pytest.raises(RunError, match=rf"^{url}: away for [12] s; the last answer: ConnectError: "):
        post(client)
    assert time.monotonic() - begun < 10


def test_a_connection_that_was_closed_meanwhile_costs_no_try() -> None:
    """Whatever of the request was sent on it, nobody has read it."""
    with serve_answers(in_turn(b"one")) as server:
        client = made(server, retries=0)
        assert post(client) == b"one"
        (kept,) = client._requests._http._transport._pool.connections  # type: ignore[attr-defined]
        # as if the server had closed it just after it was found to be open
        raw = kept._connection._network_stream.get_extra_info("socket")
        raw.shutdown(socket.SHUT_RDWR)
        kept._connection.has_expired = lambda: False
        assert post(client) == b"one"
        assert server.connections == 2


def test_a_server_that_closes_each_connection_is_asked_on_another() -> None:
    with serve_answers(in_turn((200, b"x", {"Connection": "close"}))) as server:
        client = made(server, retries=0)
        assert [post(client) for _ in range(5)] == [b"x"] * 5
        assert server.connections == 5


def test_no_cookie_is_kept() -> None:
    with serve_answers(in_turn((200, b"", {"Set-Cookie": "a=b; Path=/"}))) as server:
        client = made(server)
        post(client)
        post(client)
        assert "cookie" not in server.asked[1].headers


def test_the_token_goes_with_every_request_and_into_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_NAME", " sesame-1234 \n")
    with serve_answers(lambda asked: (401, b'{"error": "wrong key: sesame-1234"}', {})) as server:
        one = made(server, token_env="SECRET_NAME")
        said = rf"^{server.url}: answered 401, wrong key: \*\*\*; see what SECRET_NAME holds$"
        with pytest.raises(RunError, match=said):
            post(one)
        with pytest.raises(RunError, match=said):
            one.get("/x", LIMIT)
        assert [asked.headers["authorization"] for asked in server.asked] == ["Bearer sesame-1234"] * 2
        server.answer = lambda asked: (502, b"sesame-1234", {})
        with pytest.raises(RunError, match=r"502, '\*\*\*'$"):
            post(made(server, token_env="SECRET_NAME", retries=0))
        assert "sesame" not in one.config.model_dump_json()


def test_a_missing_token_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECRET_NAME", raising=False)
    with pytest.raises(
        UserError, match=r"^token_env SECRET_NAME: this environment variable is not set; put the token into it$"
    ):
        Client(Options(url="http://host", token_env="SECRET_NAME"))
    monkeypatch.setenv("SECRET_NAME", "two words")
    with pytest.raises(
        UserError, match=r"^token_env SECRET_NAME: a token has printable ASCII characters alone, and no"
    ) as caught:
        Client(Options(url="http://host", token_env="SECRET_NAME"))
    assert "two words" not in str(caught.value)
    with serve_answers(in_turn((401, b'{"error": "a token is wanted"}', {}))) as server, pytest.raises(RunError) as error:
        post(made(server))
    assert str(error.value).endswith("a token is wanted; name the environment variable that holds one with token_env")


def test_every_url_is_asked_how_it_is_and_some_answers_may_be_tolerated() -> None:
    with serve_answers(in_turn(b"a")) as a, serve_answers(in_turn((404, b"", {}))) as b:
        one = made(a, b)
        assert one.get("/models", LIMIT, tolerated=(404,)) == [(a.url, b"a"), (b.url, b"")]
        with pytest.raises(RunError, match=rf"^{b.url}: answered 404"):
            one.get("/models", LIMIT)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("host:8100", "is no URL; write it as http://host:port"),
        ("ftp://host", "is no URL"),
        ("http://", "is no URL"),
        ("http://me:sesame@host", "has no user in it; name the variable of a token with token_env"),
        ("http://host/?key=sesame", "a URL ends with its path"),
        ([], "at least 1 item"),
    ],
)
def test_a_url_is_one(url: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        Options(url=url)
    assert "sesame" not in str(caught.value.errors()[0]["msg"])


def test_a_url_may_have_a_path_and_a_slash() -> None:
    with serve_answers(in_turn(b"")) as server:
        post(Client(Options(url=f"{server.url}/v1/")))
        assert server.asked[0].path == "/v1/x"


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", dead())
    monkeypatch.setenv("ALL_PROXY", dead())
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serve_answers(in_turn(b"direct")) as server:
        assert post(made(server, retries=0)) == b"direct"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": "it broke"}', "it broke"),
        (b'{"error": {"message": "no such\\n model", "code": 404}}', "no such model"),
        (b'{"object": "error", "message": "too long"}', "too long"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [{"loc": []}]}', '\'{"detail": [{"loc": []}]}\''),
        (b"Bad Gateway\r\n", "'Bad Gateway'"),
        (b"[" * 10**5, repr("[" * 160 + "…")),
        (b"\xff" * 300, repr("\ufffd" * 160 + "…")),
    ],
)
def test_the_sentence_of_an_error_is_found(body: bytes, said: str) -> None:
    assert error_message(body) == said
