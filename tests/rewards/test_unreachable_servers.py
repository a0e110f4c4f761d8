"""Names that are not found, addresses that answer nothing, servers that go and come back: each ends, or goes on."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from odd_reward import weighted
from reward_server import Served, pictures, read_url, samples, serve_reward, serve_rewards, start_server, wait_until
from scripted_server import serve_answers, serve_sockets

from flowfactory import RunError
from flowfactory.rewards.scoring import Rewards
from flowfactory_rewards import http_client
from flowfactory_rewards.remote import RemoteConfig
from flowfactory_rewards.vlm import VlmConfig

CPU = torch.device("cpu")
SHORT = {"retries": 0, "request_timeout": 0.6}


def refusal(url: str, within: float = 10, **options: object) -> str:
    """What is said before anything is drawn, without the label."""
    begun = time.monotonic()
    with pytest.raises(RunError) as caught:
        Rewards({"mine": RemoteConfig(url=url, **{**SHORT, **options})}).prepare(CPU)
    assert time.monotonic() - begun < within
    said = str(caught.value)
    assert "\n" not in said
    return said.removeprefix("reward 'mine': ")


@contextmanager
def full_backlog() -> Iterator[str]:
    """The URL of an address that lets packets drop which ask for a connection, as one behind a firewall."""
    with ExitStack() as open_:
        listener = open_.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            waiting = open_.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_an_address_that_drops_everything_runs_out_of_time() -> None:
    with full_backlog() as url:
        assert refusal(url) == f"{url}: no answer in 1 try; the last: no connection within 0.2 s"


def test_a_handshake_without_answer_runs_out_of_time_and_is_closed() -> None:
    closed = threading.Event()

    def say_nothing(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass
        closed.set()

    with serve_sockets(say_nothing) as url:
        secure = url.replace("http:", "https:")
        assert refusal(secure) == f"{secure}: no answer in 1 try; the last: no connection within 0.2 s"
        assert closed.wait(10)


def test_a_handshake_with_what_speaks_no_tls_is_named() -> None:
    with serve_answers(lambda asked: b"{}") as server:
        secure = server.url.replace("http:", "https:")
        said = refusal(secure, request_timeout=20)
    assert said.startswith(f"{secure}: no answer in 1 try; the last: ConnectError: [SSL")


def test_a_name_that_is_not_found_is_named() -> None:
    url = "http://no-such-host.invalid:8100"
    said = refusal(url, within=60, request_timeout=30)
    assert re.match(rf"{url}: no answer in 1 try; the last: (ConnectError: \[Errno -\d\] |no connection within 10 s$)", said)


def test_names_are_looked_up_by_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs costs a thread, however often it is asked."""
    release = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        release.wait(60)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    rewards = Rewards({"mine": RemoteConfig(url="http://host:1", retries=3, request_timeout=0.3)})
    with pytest.raises(RunError, match=r"http://host:1: no answer in 4 tries; the last: no connection within 0\.1 s$"):
        rewards.prepare(CPU)
    assert [thread.name for thread in threading.enumerate()].count("look-up") == 1
    release.set()


LEAVING = """
import socket, sys, threading, time
import torch
from flowfactory import RunError
from flowfactory.rewards.scoring import Rewards
from flowfactory_rewards.remote import RemoteConfig

real = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: time.sleep(600) if host in ("slow", b"slow") else real(host, *rest, **more)
for url in ("http://slow:1", *sys.argv[1:]):
    try:
        Rewards({"mine": RemoteConfig(url=url, retries=0, request_timeout=0.3)}).prepare(torch.device("cpu"))
    except RunError as error:
        print(error)
    patient = Rewards({"mine": RemoteConfig(url=url, request_timeout=600)})
    threading.Thread(target=patient.prepare, args=(torch.device("cpu"),), daemon=True).start()
time.sleep(0.5)
print("left at", time.time(), flush=True)
"""


def test_no_process_waits_for_a_server_when_it_ends() -> None:
    with full_backlog() as dropping, serve_sockets(lambda connection: time.sleep(30)) as silent:
        urls = (dropping, silent, silent.replace("http:", "https:"))
        done = subprocess.run([sys.executable, "-c", LEAVING, *urls], capture_output=True, text=True, timeout=120)
        now = time.time()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *said, left = done.stdout.splitlines()
    for line, url in zip(said, ("http://slow:1", *urls), strict=True):
        reason = "no answer within 0.3 s" if url == silent else "no connection within 0.1 s"
        assert line == f"reward 'mine': {url}: no answer in 1 try; the last: {reason}"
    assert now - float(left.split()[-1]) < 10


@pytest.fixture
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_BACKOFF", 0.05)
    monkeypatch.setattr(http_client, "LONGEST_BACKOFF", 0.5)


def port_of(url: str) -> str:
    return url.rpartition(":")[2]


def test_a_server_that_is_restarted_on_the_way_costs_only_time(tmp_path: Path, short_backoff: None) -> None:
    """A few tries would be over long before it is back."""
    media = pictures(12)
    found: list[torch.Tensor] = []
    with serve_reward() as first:
        rewards = Rewards({"mine": RemoteConfig(url=first.url, encoding="raw", batch_size=1, requests=4, retries=1)})
        rewards.prepare(CPU)
        asking = threading.Thread(target=lambda: found.append(rewards(samples(media, hold=str(tmp_path)))["mine"]), daemon=True)
        asking.start()
        wait_until(lambda: first.metric("inside") == 4)
        first.stop(signal.SIGKILL)
        (tmp_path / "go").touch()
        again = start_server("odd", "--port", port_of(first.url))
        try:
            assert read_url(again) == first.url
            asking.join(120)
            torch.testing.assert_close(found[0], weighted(media), rtol=1e-6, atol=0)
        finally:
            end(again)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()


def test_one_of_two_may_die_and_come_back(tmp_path: Path, short_backoff: None) -> None:
    media = pictures(16)
    with serve_rewards([(), ()]) as (stays, goes):
        options = {"encoding": "raw", "batch_size": 1, "requests": 4}
        rewards = Rewards({"mine": RemoteConfig(url=(stays.url, goes.url), **options)})

        def score() -> None:
            torch.testing.assert_close(rewards(samples(media))["mine"], weighted(media), rtol=1e-6, atol=0)

        score()
        assert goes.metric("requests_total") > 0
        goes.stop(signal.SIGKILL)
        score()
        again = start_server("odd", "--port", port_of(goes.url))
        try:
            back = Served(read_url(again), again)
            deadline = time.monotonic() + 60
            while not back.metric("requests_total") and time.monotonic() < deadline:
                score()
            assert back.metric("requests_total") > 0
        finally:
            end(again)


def test_one_of_two_that_is_not_there_at_the_start_is_named() -> None:
    """Most likely it is written wrong: nobody would notice while the other one does all the work."""
    with socket.socket() as nobody, serve_answers(lambda asked: b"{}") as server:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(RunError, match=rf"reward 'mine': {gone}: no answer in 1 try; the last: ConnectError: "):
            Rewards({"mine": VlmConfig(url=(server.url, gone), model="m", retries=0)}).prepare(CPU)


def test_a_server_that_freezes_or_is_gone_for_good_ends_a_run_in_time(short_backoff: None) -> None:
    with serve_reward() as server:
        options = {"encoding": "raw", "batch_size": 1, "patience": 1, "retries": 1, "request_timeout": 0.5}
        rewards = Rewards({"mine": RemoteConfig(url=server.url, **options)})
        rewards.prepare(CPU)
        begun = time.monotonic()
        os.kill(server.process.pid, signal.SIGSTOP)
        with pytest.raises(RunError, match=r"no answer in 2 tries; the last: no answer within 0\.5 s$"):
            rewards(samples(pictures(12)))
        server.stop(signal.SIGKILL)
        with pytest.raises(RunError, match=rf"^reward 'mine': {server.url}: away for \d s; the last answer: ConnectError: "):
            rewards(samples(pictures(12)))
        assert time.monotonic() - begun < 15
