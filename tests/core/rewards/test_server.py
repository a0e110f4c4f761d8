from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from odd_reward import weighted
from reward_server import ODD, Served, pictures, read_url, samples, serve_reward, serve_rewards, start_server, wait_until

from flowfactory import Samples, UserError
from flowfactory.cli.main import main
from flowfactory.rewards.serving import bodies, dependencies
from flowfactory.rewards.serving import server as server_module
from flowfactory.rewards.serving.listening import is_local
from flowfactory.rewards.serving.refusals import RequestRefused
from flowfactory.rewards.serving.reward_file import load_reward
from flowfactory.rewards.wire import format, multipart, read_token, schema

TOKEN = "correct-horse"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """One that takes requests of 1 MiB and pictures of 2 megapixels."""
    with serve_reward("--max-request", "1", "--max-megapixels", "2", "--set", "factor=2") as one:
        yield one


def body_of(what: Samples, encoding: schema.Encoding = "raw") -> dict[str, Any]:
    content_type, content = multipart.build_multipart(format.encode_request(what, encoding))
    return {"content": content, "headers": {"Content-Type": content_type}}


def ask(url: str, what: Samples, encoding: schema.Encoding = "raw", **headers: str) -> httpx2.Response:
    body = body_of(what, encoding)
    return httpx2.post(f"{url}/score", content=body["content"], headers={**body["headers"], **headers}, timeout=60)


def test_the_scores_are_those_of_the_reward_bit_by_bit(server: Served) -> None:
    answer = ask(server.url, samples(pictures(5)))
    assert answer.status_code == 200
    assert torch.equal(torch.tensor(answer.json()["scores"]), 2 * weighted(pictures(5)))


def test_it_says_what_it_is_and_how_it_does(server: Served) -> None:
    health = httpx2.get(f"{server.url}/health")
    assert health.status_code == 200
    assert health.json() == {"reward": "odd", "version": 1, "pointwise": True, "max_request": 2**20, "device": "cpu"}
    told = httpx2.get(server.url).text
    assert told.startswith("odd: A weighted sum of the pixels")
    assert "multipart/form-data" in told


def test_metrics_count_requests_and_samples(server: Served) -> None:
    names = ("requests_total", "samples_total", "request_bytes_total", "compute_seconds_total", "inside")
    before = {name: server.metric(name) for name in names}
    body = body_of(samples(pictures(3)))
    httpx2.post(f"{server.url}/score", **body)
    httpx2.post(f"{server.url}/score", content=b"")
    after = {name: server.metric(name) for name in names}
    assert after["requests_total"] - before["requests_total"] == 2
    assert after["samples_total"] - before["samples_total"] == 3
    assert after["request_bytes_total"] - before["request_bytes_total"] == len(body["content"])
    assert after["compute_seconds_total"] > before["compute_seconds_total"]
    assert after["inside"] == 0
    text = httpx2.get(f"{server.url}/metrics").text
    assert re.search(r'^flowfactory_requests_total\{status="400"\} \d+$', text, re.M)
    assert all(
        re.fullmatch(r"# (HELP|TYPE) flowfactory_\w+ .+|flowfactory_\w+(\{\w+=\"\d+\"\})? \S+", line)
        for line in text.splitlines()
    )


@pytest.mark.parametrize(
    ("mode", "status", "said"),
    [
        ("raise", 500, r"reward 'odd': ZeroDivisionError: the picture is upside down \(odd_reward\.py line \d+\)"),
        ("long-error", 500, r"reward 'odd': ValueError: A{1900,2000}…"),
        ("run-error", 422, "reward 'odd': no face in the picture"),
        ("nan", 422, "reward 'odd': gave nan for sample 3; scores must be finite"),
        ("short", 422, r"reward 'odd': gave \[3\]; expected a tensor \[4\], one score a sample"),
    ],
)
def test_what_goes_wrong_in_the_reward_is_told_and_the_server_lives_on(
    server: Served, mode: str, status: int, said: str
) -> None:
    answer = ask(server.url, samples(pictures(4), mode=mode))
    assert re.fullmatch(said, answer.json()["error"])
    assert answer.status_code == status
    assert ask(server.url, samples(pictures(4))).status_code == 200


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_a_request_that_is_off_is_refused_with_a_sentence(server: Served, encoding: schema.Encoding) -> None:
    body = body_of(samples(pictures(2)), encoding)
    answer = httpx2.post(f"{server.url}/score", content=body["content"][:-100], headers=body["headers"])
    assert (answer.status_code, answer.json()) == (400, {"error": "the body ends within a part"})
    answer = httpx2.post(f"{server.url}/score", content=b"{}", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "expected multipart/form-data" in answer.json()["error"]


def test_more_pixels_than_allowed_are_refused(server: Served) -> None:
    answer = ask(server.url, samples(torch.zeros(3, 3, 1000, 1000)), "png")
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "part 'media-2': media have more than 2000000 pixels together; send fewer in a request",
    )


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "in chunks"])
@pytest.mark.parametrize("mebibytes", [1.01, 40])
def test_a_request_that_is_too_large_is_refused_while_it_arrives(server: Served, declared: bool, mebibytes: float) -> None:
    content = bytes(int(mebibytes * 2**20))
    pieces = content if declared else (content[i : i + 2**16] for i in range(0, len(content), 2**16))
    answer = httpx2.post(f"{server.url}/score", content=pieces, timeout=60)
    assert answer.status_code == 413
    assert answer.json()["error"].startswith("the request is larger than 1 MiB; send fewer samples in one, or serve with --max")
    assert ask(server.url, samples(pictures(4))).status_code == 200


def test_a_sender_that_breaks_off_disturbs_nobody(server: Served) -> None:
    before = server.metric("samples_total")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
    wait_until(lambda: server.metric("inside") == 0)
    assert server.metric("samples_total") == before
    assert ask(server.url, samples(pictures(4))).status_code == 200


def test_metadata_that_choose_among_the_labels_of_a_run_do_not_choose_here(server: Served) -> None:
    answer = ask(server.url, samples(pictures(2), mode="metadata", rewards=["mine"]))
    assert answer.json() == {"scores": [1, 1], "reward": "odd"}


def test_files_of_prompts_are_there_while_scores_are_computed_and_gone_after(server: Served, tmp_path: Path) -> None:
    from PIL import Image

    from flowfactory import Prompt

    picture, clip = tmp_path / "before.png", tmp_path / "clip.mp4"
    Image.new("RGB", (3, 3)).save(picture)
    clip.write_bytes(b"12345")
    sources = (Prompt("a", 1, {}, "blurry", (picture, picture)), Prompt("b", 2, {}, None, (), clip))
    answer = ask(server.url, replace(samples(pictures(2), mode="sources"), sources=sources))
    assert answer.json()["scores"] == [1 + 6 + 2000 * len(picture.read_bytes()), 2 + 5000]


def test_two_labels_on_one_connection(server: Served) -> None:
    with httpx2.Client() as client:
        ports = set()
        for _ in range(5):
            answer = client.post(f"{server.url}/score", **body_of(samples(pictures(1))))
            ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(ports) == 1


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    """One that asks for a token and lets one request wait."""
    with serve_reward("--token-env", "ODD_TOKEN", "--queue", "1", environment={"ODD_TOKEN": TOKEN}) as one:
        yield one


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "a token is required: Authorization: Bearer TOKEN"),
        ({"Authorization": "Bearer wrong"}, "the token is wrong"),
        ({"Authorization": f"Bearer {TOKEN}x"}, "the token is wrong"),
        ({"Authorization": TOKEN}, "the token is wrong"),
        ({"Authorization": b"Bearer \xff\xfe"}, "the token is wrong"),
    ],
)
def test_without_the_token_nothing_is_told(guarded: Served, given: Any, said: str) -> None:
    with httpx2.Client() as client:
        for path in ("/", "/health", "/health/", "/metrics", "/score", "/nope", "//evil.example/", "/openapi.json", "/%00"):
            for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD", "TRACE", "ODD"):
                content = bytes(2**20) if method == "POST" else None
                answer = client.request(method, guarded.url + path, headers=given, content=content)
                assert answer.status_code == 401, (method, path)
                assert method == "HEAD" or answer.json() == {"error": said}, (method, path)


def test_other_paths_and_methods_are_refused_in_the_format(server: Served) -> None:
    host = {"Host": "evil.example"}
    for path in ("/nope", "/health/", "/score/", "//evil.example/", "/openapi.json", "/docs"):
        answer = httpx2.get(server.url + path, headers=host)
        said = "there is no such path; there are GET /, GET /health, GET /metrics and POST /score"
        assert (answer.status_code, answer.json()) == (404, {"error": said})
        assert "evil" not in str(answer.headers)
    for method, path, allowed in (("GET", "/score", "POST"), ("PUT", "/score", "POST"), ("DELETE", "/metrics", "GET")):
        answer = httpx2.request(method, server.url + path, headers=host)
        assert (answer.status_code, list(answer.json())) == (405, ["error"])
        assert allowed in answer.headers["allow"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_with_the_token_all_is(guarded: Served, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {TOKEN}"}
    assert all(httpx2.get(guarded.url + path, headers=headers).status_code == 200 for path in ("/", "/health", "/metrics"))
    assert ask(guarded.url, samples(pictures(1)), **headers).status_code == 200


def test_beyond_the_queue_requests_are_sent_away_until_there_is_room(guarded: Served, tmp_path: Path) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, guarded.url, samples(pictures(1), hold=str(tmp_path)), **headers)
        wait_until((tmp_path / "begun").exists)
        second = pool.submit(ask, guarded.url, samples(pictures(2)), **headers)

        def inside() -> str:
            text = httpx2.get(f"{guarded.url}/metrics", headers=headers).text
            return re.findall(r"^flowfactory_inside (\d)$", text, re.M)[0]

        wait_until(lambda: inside() == "2")
        third = ask(guarded.url, samples(pictures(3)), **headers)
        assert (third.status_code, third.json()) == (503, {"error": "1 requests wait already"})
        assert int(third.headers["retry-after"]) >= 1
        assert httpx2.get(f"{guarded.url}/health", headers=headers).status_code == 200
        (tmp_path / "go").touch()
        assert [len(answer.result().json()["scores"]) for answer in (first, second)] == [1, 2]
    assert ask(guarded.url, samples(pictures(3)), **headers).status_code == 200


def test_whoever_has_gone_is_not_computed_for_and_the_others_come_in_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serve_reward("--queue", "20") as one:
        with ThreadPoolExecutor(12) as pool:
            held = pool.submit(ask, one.url, samples(pictures(1), hold=str(tmp_path)))
            wait_until((tmp_path / "begun").exists)
            with pytest.raises(httpx2.ReadTimeout):
                httpx2.post(f"{one.url}/score", **body_of(samples(pictures(100))), timeout=httpx2.Timeout(60, read=0.5))
            with pytest.raises(httpx2.ReadTimeout):
                httpx2.post(f"{one.url}/score", **body_of(samples(pictures(100))), timeout=httpx2.Timeout(60, read=0.5))
            waiting = []
            for count in range(2, 10):
                waiting.append(pool.submit(ask, one.url, samples(pictures(count), log=str(log))))
                wait_until(lambda n=count: one.metric("inside") == n + 2)  # type: ignore[misc]
            (tmp_path / "go").touch()
            assert all(each.result().status_code == 200 for each in [held, *waiting])
        assert log.read_text().split() == list("23456789")
        assert one.metric("samples_total") == sum(range(1, 10))


def test_asked_to_stop_it_finishes_what_it_accepted(tmp_path: Path) -> None:
    with serve_rewards([(), ()]) as servers, ThreadPoolExecutor(3) as pool:
        for one, how in zip(servers, (signal.SIGTERM, signal.SIGINT), strict=True):
            folder = tmp_path / how.name
            folder.mkdir()
            first = pool.submit(ask, one.url, samples(pictures(1), hold=str(folder)))
            wait_until((folder / "begun").exists)
            others = [pool.submit(ask, one.url, samples(pictures(count))) for count in (2, 3)]
            wait_until(lambda one=one: one.metric("inside") == 3)  # type: ignore[misc]
            one.process.send_signal(how)
            wait_until(lambda one=one: closed(one.url))  # type: ignore[misc]
            (folder / "go").touch()
            assert [len(answer.result().json()["scores"]) for answer in (first, *others)] == [1, 2, 3]
            assert one.process.wait(60) == 0
            assert one.process.stdout
            assert one.process.stdout.read() == ""


def test_asked_to_stop_twice_it_has_whoever_waits_come_again(tmp_path: Path) -> None:
    with serve_reward() as one, ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, one.url, samples(pictures(1), hold=str(tmp_path)))
        wait_until((tmp_path / "begun").exists)
        second = pool.submit(ask, one.url, samples(pictures(2)))
        wait_until(lambda: one.metric("inside") == 2)
        one.process.send_signal(signal.SIGINT)
        wait_until(lambda: closed(one.url))
        one.process.send_signal(signal.SIGINT)
        for answer in (first.result(), second.result()):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json() == {"error": "the server was stopped before it had the answer"}
        one.process.wait(60)
        assert one.process.stdout
        assert one.process.stdout.read() == ""


def closed(url: str) -> bool:
    try:
        httpx2.get(f"{url}/health")
    except httpx2.TransportError:
        return True
    return False


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_it_listens_when_the_reward_is_ready_and_not_before(tmp_path: Path) -> None:
    port, ready = free_port(), tmp_path / "ready"
    process = start_server("odd", "--port", str(port), "--set", f"until={ready}")
    second = None
    try:
        # the port is its own before it listens: another one is refused at once
        wait_until(lambda: taken(port))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        ready.touch()
        assert read_url(process) == f"http://127.0.0.1:{port}"
        assert httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200
        second = start_server("odd", "--port", str(port))
        said, _ = second.communicate(timeout=60)
        assert (second.returncode, said) == (
            2,
            f"error: --port {port}: in use on 127.0.0.1; choose another, or 0 for any that is free\n",
        )
    finally:
        for each in (process, second):
            if each is not None:
                each.kill()
                each.communicate()


def taken(port: int) -> bool:
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: odd\nfcator: 2\n")
    (tmp_path / "l.yaml").write_text("- odd\n")
    cases = {
        ("od",): r"reward od: no reward called 'od'; did you mean 'odd'\?|.*no reward called 'od'; did you mean 'odd'\?",
        ("odd", "--set", "factor"): r"--set factor: write it as key=value",
        ("odd", "--set", "factr=2"): r".*factr: unknown key; did you mean 'factor'\?",
        (str(tmp_path / "r.yaml"),): r"r\.yaml: fcator: unknown key; did you mean 'factor'\?",
        (str(tmp_path / "l.yaml"),): r"l\.yaml: expected a mapping with the 'name' of a reward and its options",
        (str(tmp_path / "gone.yaml"),): r"no file .*gone\.yaml",
        ("odd", "--token-env", "NOT_SET"): r"--token-env NOT_SET: this environment variable is not set; put the token into it",
        ("odd", "--host", "no.such.host.invalid"): r"--host no\.such\.host\.invalid: .*",
        ("odd", "--host", "192.0.2.1"): r"--host 192\.0\.2\.1 --port 8100: .*",
        **{
            ("odd", "--timeout", each): r"--timeout: give a number of seconds, at least 0\.001 and at most 10000000"
            for each in ("nan", "0", "1e8", "inf", "soon")
        },
        ("odd", "--device", "cuda:77"): r"device: 'cuda:77' is not available here: .*",
    }
    monkeypatch.delenv("NOT_SET", raising=False)
    for options, said in cases.items():
        monkeypatch.setattr("sys.argv", ["flowfactory", "serve", *options, "--plugin", str(ODD)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2, options
        assert re.fullmatch(f"error: ({said})\n", capsys.readouterr().err), options


def test_a_reward_that_cannot_get_ready_ends_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["odd", "--plugin", str(ODD), "--port", "0", "--set", "broken=its weights are torn"]
    monkeypatch.setattr("sys.argv", ["flowfactory", "serve", *options])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "stopped: reward 'odd': its weights are torn\n"


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=r"^flowfactory serve needs fastapi: pip install 'flowfactory\[serve\]'$"):
        dependencies.require_dependencies()


def test_whoever_listens_to_other_machines_without_a_token_is_warned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []
    monkeypatch.setattr(server_module, "serve", lambda service, listener, *rest: heard.append(listener.getsockname()))
    monkeypatch.setenv("ODD_TOKEN", TOKEN)
    for options in (["--host", "0.0.0.0"], ["--host", "0.0.0.0", "--token-env", "ODD_TOKEN"], []):
        arguments = ["odd", "--plugin", str(ODD), "--port", "0", *options]
        monkeypatch.setattr("sys.argv", ["flowfactory", "serve", *arguments])
        with pytest.raises(SystemExit):
            main()
    assert [address[0] for address in heard] == ["0.0.0.0", "0.0.0.0", "127.0.0.1"]
    warned = capsys.readouterr().err
    assert warned == "warning: anyone who can reach 0.0.0.0 can request scores; require a token with --token-env NAME\n"


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("n7", False)],
)
def test_loopback_is_told_from_the_rest(host: str, local: bool) -> None:
    assert is_local(host) == local


def test_a_reward_is_a_name_or_a_file_with_options_set_on_top(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: odd\nfactor: 3\nuntil: here\n")
    plugins = [ODD]
    assert load_reward("odd", [], plugins)[1].model_dump()["factor"] == 1
    name, config = load_reward(str(file), ["factor=1e-4"], plugins)
    assert (name, config.model_dump()["factor"], config.model_dump()["until"]) == ("odd", 1e-4, "here")


def test_a_token_that_no_header_can_carry_as_one_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for token in ("schlüssel", "two words", "a\tb"):
        monkeypatch.setenv("T", token)
        with pytest.raises(UserError, match=r"^--token-env T: a token has printable ASCII characters alone, and no spaces$"):
            read_token("--token-env", "T")
    monkeypatch.setenv("T", " spaced-out\n")
    assert read_token("--token-env", "T") == "spaced-out"
    assert read_token("--token-env", None) is None


class Arriving:
    """A request of many pieces, each ``pause`` seconds after the one before."""

    def __init__(self, pause: float) -> None:
        self._pause = pause

    async def stream(self) -> AsyncIterator[bytes]:
        for _ in range(10**6):
            await asyncio.sleep(self._pause)
            yield b"x"


@pytest.mark.parametrize(("pause", "said"), [(0.01, r"it took more than 0\.3 s to arrive"), (60, r"nothing came for 0\.2 s")])
def test_a_sender_that_trickles_or_falls_silent_is_refused(pause: float, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "ARRIVAL", 0.3)
    monkeypatch.setattr(bodies, "SILENCE", 0.2)

    async def receive() -> int:
        return len([piece async for piece in bodies._chunks(Arriving(pause))])  # type: ignore[arg-type]

    with pytest.raises(RequestRefused, match=rf"^{said}$") as caught:
        asyncio.run(receive())
    assert caught.value.status == 408


def test_the_page_is_the_format_that_is_read(tmp_path: Path) -> None:
    """Every key that the description names is a key of the request, and the other way round."""
    assert format.__doc__
    keys = {
        *schema.Request.model_fields,
        *schema.Sample.model_fields,
        *schema.Medium.model_fields,
        *schema.File.model_fields,
    }
    assert {key for key in keys if f'"{key}"' in format.__doc__} == keys
    example = re.search(r"\{\"version\": 1.*\}", format.__doc__)
    assert example
    filled = example[0].replace("[SAMPLE, ...]", json.dumps([{"prompt": "p", "media": {"part": "m", "type": "image/png"}}]))
    assert schema.Request.model_validate_json(filled).version == 1
