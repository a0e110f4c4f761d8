"""A reward that hangs, dies or does not start, behind ``flowfactory serve``."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from odd_reward import weighted
from reward_server import Served, pictures, samples, serve_reward, start_server, wait_until

from flowfactory.rewards.wire import build_multipart, encode_request

SHORT_PAUSES = "from flowfactory.rewards.serving import reward_process\nreward_process.FIRST_PAUSE = 0.2"


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file without which the reward of ``server`` does not start."""
    file = tmp_path_factory.mktemp("gate") / "open"
    file.touch()
    return file


@pytest.fixture(scope="module")
def helpers(gate: Path) -> Path:
    """Where the reward of ``server`` writes the number of the process that it forked last."""
    return gate.with_name("helper")


@pytest.fixture(scope="module")
def server(gate: Path, helpers: Path) -> Iterator[Served]:
    """One whose reward may take two seconds for a request."""
    environment = {"ODD_HELPERS": str(helpers)}
    with serve_reward("--timeout", "2", "--set", f"gate={gate}", environment=environment, before=SHORT_PAUSES) as one:
        yield one


def ask(url: str, count: int = 2, size: int = 16, **metadata: object) -> httpx2.Response:
    content_type, body = build_multipart(encode_request(samples(pictures(count, size), **metadata), "raw"))
    return httpx2.post(f"{url}/score", content=body, headers={"Content-Type": content_type}, timeout=60)


def pid_of_reward(server: Served) -> int:
    return int(ask(server.url, mode="pid").json()["scores"][0])


def is_gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def is_right(answer: httpx2.Response, count: int = 2) -> bool:
    return answer.status_code == 200 and torch.equal(torch.tensor(answer.json()["scores"]), weighted(pictures(count)))


def test_a_hung_reward_starts_anew_and_those_behind_it_are_answered(server: Served) -> None:
    before = pid_of_reward(server)
    with ThreadPoolExecutor(4) as pool:
        hung = pool.submit(ask, server.url, mode="hang")
        wait_until(lambda: server.metric("inside") == 1)
        behind = [pool.submit(ask, server.url) for _ in range(3)]
        answer = hung.result()
        said = "reward 'odd': no scores within 2 seconds; raise --timeout, or look at what holds it up"
        assert (answer.status_code, answer.json()) == (504, {"error": said})
        assert all(is_right(each.result()) for each in behind)
    assert pid_of_reward(server) != before
    assert is_gone(before)


def test_a_reward_that_reads_nothing_starts_anew_too(server: Served) -> None:
    os.kill(pid_of_reward(server), signal.SIGSTOP)
    assert ask(server.url, size=512).status_code == 504  # more than a pipe takes
    assert is_right(ask(server.url))


@pytest.mark.parametrize(("mode", "how"), [("os-exit", "ended with exit code 3"), ("segfault", "was ended by SIGSEGV")])
def test_a_reward_that_dies_starts_anew(server: Served, mode: str, how: str) -> None:
    answer = ask(server.url, mode=mode)
    said = f"reward 'odd': its process {how}; look for what ended it, most likely a lack of memory"
    assert (answer.status_code, answer.json()) == (502, {"error": said})
    assert is_right(ask(server.url))


@pytest.mark.parametrize(("mode", "status"), [("fork-hang", 504), ("fork-die", 502)])
def test_what_a_reward_forked_holds_nothing_up_and_ends_with_it(server: Served, helpers: Path, mode: str, status: int) -> None:
    assert ask(server.url, mode=mode).status_code == status
    helper = int(helpers.read_text())
    assert is_right(ask(server.url))
    wait_until(lambda: is_gone(helper))
    assert httpx2.get(f"{server.url}/health", timeout=60).status_code == 200


def test_a_fork_that_comes_back_answers_nobody(server: Served) -> None:
    assert ask(server.url, mode="fork-return").status_code == 200
    assert all(is_right(ask(server.url, count), count) for count in (2, 3, 4))


def test_a_reward_that_writes_to_all_that_it_has_open_starts_anew(server: Served) -> None:
    before = pid_of_reward(server)
    assert ask(server.url, mode="garbage").status_code == 502
    assert is_right(ask(server.url))
    assert is_gone(before)


def test_a_reward_that_died_while_nobody_asked_is_there_when_somebody_does(server: Served) -> None:
    pid = pid_of_reward(server)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))
    assert is_right(ask(server.url))


@pytest.mark.parametrize(("mode", "said"), [("sys-exit", "SystemExit: enough"), ("interrupt", "KeyboardInterrupt")])
def test_a_reward_that_exits_ends_neither_the_service_nor_its_process(server: Served, mode: str, said: str) -> None:
    before = pid_of_reward(server)
    answer = ask(server.url, mode=mode)
    assert answer.status_code == 500
    assert re.fullmatch(rf"reward 'odd': {said} \(odd_reward\.py line \d+\)", answer.json()["error"])
    assert pid_of_reward(server) == before


def test_a_reward_that_does_not_start_again_is_said_so_until_it_does(server: Served, gate: Path) -> None:
    gate.unlink()
    assert ask(server.url, mode="os-exit").status_code == 502
    starts = server.metric("starts_total")

    def told() -> Any:
        return httpx2.get(f"{server.url}/health", timeout=60)

    wait_until(lambda: "before it was ready" in told().text)
    said = r"reward 'odd': its process ended with exit code 4 before it was ready; it is started again in \d+\.\d s"
    for answer in (told(), ask(server.url)):
        assert answer.status_code == 503
        assert re.fullmatch(said, answer.json()["error"])
        assert int(answer.headers["retry-after"]) >= 1
    wait_until(lambda: bool(told()) and server.metric("starts_total") >= starts + 2)
    gate.touch()
    wait_until(lambda: told().status_code == 200)
    assert is_right(ask(server.url))


def test_a_reward_whose_workers_die_starts_anew_with_all_of_them() -> None:
    with serve_reward("--set", "workers=1") as one:
        answer = ask(one.url, mode="os-exit")
        said = "reward 'odd': one of its workers died; look for what ended it, most likely a lack of memory"
        assert (answer.status_code, answer.json()) == (502, {"error": said})
        assert is_right(ask(one.url))


def test_a_reward_that_ends_while_it_gets_ready_ends_the_command() -> None:
    cases = {
        "os-exit": r"its process ended with exit code 3 before it was ready",
        "sys-exit": r"SystemExit: enough \(odd_reward\.py line \d+\)",
        "interrupt": r"KeyboardInterrupt \(odd_reward\.py line \d+\)",
    }
    processes = {ends: start_server("odd", "--port", "0", "--set", f"ends={ends}") for ends in cases}
    for ends, process in processes.items():
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 1
        assert re.fullmatch(f"stopped: reward 'odd': {cases[ends]}\n", told)


def test_nothing_is_left_of_a_service_that_was_killed(server: Served) -> None:
    """The last one here, which leaves no server."""
    pid = pid_of_reward(server)
    server.process.kill()
    wait_until(lambda: is_gone(pid))
