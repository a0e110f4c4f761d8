from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_reward import size_of, weighted
from PIL import Image
from reward_server import Served, pictures, samples, serve_reward, serve_rewards, wait_until
from scripted_server import Request, serve_answers

from flowfactory import Prompt, RunError, Samples, UserError
from flowfactory.config.component_slots import config_class
from flowfactory.discovery.discover import discover
from flowfactory.rewards.scoring import Rewards
from flowfactory.testing import check_reward
from flowfactory_rewards import dependencies, http_client
from flowfactory_rewards.remote import RemoteConfig, pack_batches

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Served, ...]]:
    """One that is pointwise, one that compares, with a token, and one that lets nobody wait."""
    options = [("--queue", "250"), ("--set", "pointwise=false", "--token-env", "T"), ("--queue", "0", "--max-request", "1")]
    with serve_rewards(options, environment={"T": "sesame-1234"}) as all_:
        yield all_


@pytest.fixture
def server(servers: tuple[Served, ...]) -> Served:
    return servers[0]


def scores(what: Samples, *urls: str, **options: Any) -> torch.Tensor:
    return Rewards({"mine": RemoteConfig(url=urls, **options)})(what)["mine"]


def fails(what: Samples, *urls: str, **options: Any) -> str:
    """What is said, which begins with the label."""
    with pytest.raises(RunError) as caught:
        scores(what, *urls, **options)
    said = str(caught.value)
    assert said.startswith("reward 'mine': ")
    assert "\n" not in said
    return said.removeprefix("reward 'mine': ")


def test_it_keeps_the_contract(server: Served) -> None:
    found = check_reward(RemoteConfig(url=server.url, encoding="raw"), samples(pictures(5)))
    assert torch.equal(found["under test"], weighted(pictures(5)))


@pytest.mark.parametrize("shape", [(6, 3, 8, 8), (6, 1, 8, 8), (4, 5, 3, 8, 8)], ids=["pictures", "grey", "videos"])
def test_raw_scores_are_those_of_here_bit_by_bit(server: Served, shape: tuple[int, ...]) -> None:
    media = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(scores(samples(media), server.url, encoding="raw"), weighted(media))


@pytest.mark.parametrize("encoding", ["png", "webp", "raw8"])
@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 5, 3, 8, 8)], ids=["pictures", "videos"])
def test_other_scores_are_those_of_the_rounded_media(server: Served, encoding: str, shape: tuple[int, ...]) -> None:
    media = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(scores(samples(media), server.url, encoding=encoding), weighted((media * 255).round() / 255))


def test_batches_are_as_large_as_asked_for_and_scores_in_order(server: Served) -> None:
    before = server.metric("requests_total")
    found = scores(samples(pictures(10)), server.url, encoding="raw", batch_size=4)
    torch.testing.assert_close(found, weighted(pictures(10)), rtol=1e-6, atol=0)  # sums of other shapes round otherwise
    assert server.metric("requests_total") - before == 3
    counts = scores(samples(pictures(10), [0, 0, 0, 1, 1, 1, 2, 2, 2, 2], mode="count"), server.url, batch_size=4)
    assert counts.tolist() == [4] * 8 + [2] * 2


def test_groups_stay_whole_where_the_reward_compares(servers: tuple[Served, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T", "sesame-1234")
    groups = [3, 3, 3, 1, 1, 1, 2, 2, 2, 2]
    options: Any = {"batch_size": 6, "encoding": "raw", "token_env": "T"}
    counts = scores(samples(pictures(10), groups, mode="count"), servers[1].url, **options)
    assert counts.tolist() == [6] * 6 + [4] * 4
    counts = scores(samples(pictures(10), groups, mode="count"), servers[1].url, **{**options, "batch_size": 1})
    assert counts.tolist() == [3] * 6 + [4] * 4
    whole = weighted(pictures(10))
    expected = torch.cat([part - part.mean() for part in whole.split([3, 3, 4])])
    found = scores(samples(pictures(10), groups, mode="group"), servers[1].url, **options)
    assert torch.allclose(found, expected, atol=1e-7)


def test_units_are_packed_whole() -> None:
    assert pack_batches([[0], [1], [2], [3], [4]], 2) == [[0, 1], [2, 3], [4]]
    assert pack_batches([[0, 1, 2], [3], [4, 5]], 3) == [[0, 1, 2], [3, 4, 5]]
    assert pack_batches([[0, 1, 2], [3, 4]], 1) == [[0, 1, 2], [3, 4]]


def test_what_prompts_bring_is_there_too(server: Served, tmp_path: Path) -> None:
    picture = tmp_path / "before.png"
    Image.new("RGB", (3, 3)).save(picture)
    sources = (Prompt("a", 1, {}, "blurry", (picture,)), Prompt("b", 2, {}, None, (picture, picture), picture))
    found = scores(replace(samples(pictures(2), mode="sources"), sources=sources), server.url)
    assert found.tolist() == [size_of(source) for source in sources]


def test_a_prompt_that_chooses_its_labels_is_judged_by_them_alone(server: Served) -> None:
    metadata: Any = ({"rewards": ["mine", "other"]}, {"rewards": ["other"]}, {})
    found = scores(replace(samples(pictures(3)), metadata=metadata), server.url, encoding="raw")
    torch.testing.assert_close(found[[0, 2]], weighted(pictures(3))[[0, 2]], rtol=1e-6, atol=0)  # two of a sum of three
    assert found[1].isnan()


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("raise", "answered 500, reward 'odd': ZeroDivisionError: the picture is upside down (odd_reward.py line"),
        ("run-error", "answered 422, reward 'odd': no face in the picture"),
        ("nan", "answered 422, reward 'odd': gave nan for sample 3; scores must be finite"),
        ("short", "answered 422, reward 'odd': gave [3]; expected a tensor [4], one score a sample"),
    ],
)
def test_a_failure_over_there_is_one_of_the_run_and_is_not_tried_again(server: Served, mode: str, said: str) -> None:
    before = server.metric("requests_total")
    assert fails(samples(pictures(4), mode=mode), server.url).startswith(f"{server.url}: {said}")
    assert server.metric("requests_total") - before == 1


HEALTH = json.dumps({"reward": "r", "version": 1, "pointwise": True, "max_request": 10**6}).encode()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<html>", "answered no JSON: '<html>'"),
        (b'{"scores": [1]}', "answered 1 scores for 2 samples"),
        (b'{"scores": [1, NaN]}', "answered NaN for sample 1; scores must be finite numbers"),
        (b'{"scores": [1, "2"]}', 'answered "2" for sample 1; scores must be finite numbers'),
        (b'{"scores": [1, 2, 3]}', "answered 3 scores for 2 samples"),
        (b'{"scores": [1, -Infinity]}', "answered -Infinity for sample 1; scores must be finite numbers"),
        (b'{"scores": [1, 1e400]}', "answered Infinity for sample 1; scores must be finite numbers"),
        (b'{"scores": [1, null]}', "answered null for sample 1; scores must be finite numbers"),
        (b'{"scores": [true, 1]}', "answered true for sample 0; scores must be finite numbers"),
        (
            b'{"scores": [1, ' + b"9" * 400 + b"]}",
            f"answered {'9' * 50} for sample 1; scores must be finite numbers",
        ),
        (b'{"scores": [1, ' + b"9" * 5000 + b"]}", 'answered no JSON: \'{"scores": [1, ' + "9" * 145 + "…'"),
        (b'{"scores": [1, 2]', "answered no JSON: '{\"scores\": [1, 2]'"),
        (b"\xff\x1b[31m", "answered no JSON: '\ufffd\\x1b[31m'"),
        (b'{"score": 1}', "answered no list of scores: '{\"score\": 1}'"),
    ],
)
def test_an_answer_that_is_off_is_an_error_and_no_score(answer: bytes, said: str) -> None:
    with serve_answers(lambda asked: HEALTH if asked.path == "/health" else answer) as server:
        assert fails(samples(pictures(2)), server.url) == f"{server.url}: {said}"


def test_scores_of_another_reward_than_at_the_start_are_refused() -> None:
    body = b'{"scores": [1, 2], "reward": "%s"}'
    with serve_answers(lambda asked: HEALTH if asked.path == "/health" else body % b"other") as server:
        assert fails(samples(pictures(2)), server.url) == (
            f"{server.url}: serves 'other' now, and 'r' before; see what was started there"
        )
        server.answer = lambda asked: HEALTH if asked.path == "/health" else body % b"r"
        assert scores(samples(pictures(2)), server.url).tolist() == [1, 2]


def test_a_server_that_is_too_slow_is_an_error(server: Served, tmp_path: Path) -> None:
    said = fails(samples(pictures(2), hold=str(tmp_path)), server.url, request_timeout=0.5, retries=0)
    assert said == f"{server.url}: no answer in 1 try; the last: no answer within 0.5 s"
    (tmp_path / "go").touch()
    wait_until(lambda: server.metric("inside") == 0)


def test_a_server_that_is_slower_than_the_label_allows_is_an_error(server: Served, tmp_path: Path) -> None:
    from flowfactory.config.component_slots import parse_component

    config = parse_component("reward", {"name": "remote", "url": server.url, "timeout": 0.5})
    with pytest.raises(RunError, match=r"^reward 'mine': no scores within "):
        Rewards({"mine": config})(samples(pictures(2), hold=str(tmp_path)))
    (tmp_path / "go").touch()
    wait_until(lambda: server.metric("inside") == 0)


def dead() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{found.getsockname()[1]}"


def unready(*urls: str, **options: Any) -> str:
    """What is said before anything is drawn."""
    with pytest.raises((RunError, UserError)) as caught:
        Rewards({"mine": RemoteConfig(url=urls, **options)}).prepare(CPU)
    said = str(caught.value)
    assert said.startswith("reward 'mine': ")
    return said.removeprefix("reward 'mine': ")


def test_what_is_not_there_ends_a_run_before_anything_is_drawn(server: Served) -> None:
    gone = dead()
    assert unready(server.url, gone, retries=0).startswith(f"{gone}: no answer in 1 try; the last: ConnectError: ")


def test_what_is_no_server_of_rewards_is_told(server: Served) -> None:
    with serve_answers(lambda asked: b'{"status": "ok"}') as other:
        assert unready(other.url) == f'{other.url}/health answered \'{{"status": "ok"}}\'; is that flowfactory serve?'
    with serve_answers(lambda asked: (404, b"", {})) as other:
        assert unready(other.url) == f"{other.url}: answered 404, ''"
    with serve_answers(lambda asked: HEALTH.replace(b'"version": 1', b'"version": 9')) as other:
        assert unready(other.url) == f"{other.url} speaks version 9 of the format and this is 1; install the same flowfactory"
    with serve_answers(lambda asked: HEALTH) as other:
        said = f"{server.url} serves 'odd' and {other.url} 'r'; all must serve one reward"
        assert unready(server.url, other.url) == said


def test_a_token_that_is_missing_or_wrong_is_one_line(servers: tuple[Served, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    url = servers[1].url
    name = "name the environment variable that holds one with token_env"
    assert unready(url) == f"{url}: answered 401, a token is required: Authorization: Bearer TOKEN; {name}"
    monkeypatch.setenv("T", "sesame-12345")
    assert unready(url, token_env="T") == f"{url}: answered 401, the token is wrong; see what T holds"
    monkeypatch.delenv("T")
    assert unready(url, token_env="T") == "token_env T: this environment variable is not set; put the token into it"


def test_a_request_that_the_server_would_not_take_is_not_sent(servers: tuple[Served, ...]) -> None:
    said = fails(samples(pictures(8, 256)), servers[2].url, encoding="raw")
    assert said == (
        f"8 samples make a request of 6.0 MiB, and {servers[2].url} takes 1; "
        "lower batch_size, or serve with a larger --max-request"
    )
    found = scores(samples(pictures(8, 256)), servers[2].url, encoding="raw", batch_size=1, requests=1)
    torch.testing.assert_close(found, weighted(pictures(8, 256)), rtol=1e-6, atol=0)  # sums of other shapes round otherwise


def test_what_cannot_be_sent_is_told(server: Served) -> None:
    said = fails(samples(pictures(2, channels=4)), server.url)
    assert said == "media have 4 channels; png has 1 or 3: write 'encoding: raw'"


def test_a_server_that_lets_nobody_wait_gives_all_scores_in_the_end(servers: tuple[Served, ...]) -> None:
    before = servers[2].metric("samples_total")
    media = pictures(8, 32)
    found = scores(samples(media, sleep=0.05), servers[2].url, encoding="raw", batch_size=1, requests=8, retries=0)
    torch.testing.assert_close(found, weighted(media), rtol=1e-6, atol=0)  # sums of other shapes round otherwise
    assert servers[2].metric("samples_total") - before == 8
    sent_away = [line for line in _metrics(servers[2]) if line.startswith('flowfactory_requests_total{status="503"}')]
    assert sent_away


def _metrics(server: Served) -> list[str]:
    import httpx2

    return httpx2.get(f"{server.url}/metrics").text.splitlines()


def test_200_requests_at_once_lose_and_mix_up_nothing(server: Served) -> None:
    base = pictures(1, 512, seed=9)
    # smooth, as pictures are, and each another one
    media = torch.nn.functional.avg_pool2d(base, 9, 1, 4).expand(200, -1, -1, -1) * torch.linspace(0.2, 1, 200).view(
        -1, 1, 1, 1
    )
    before = server.metric("samples_total")
    found = scores(samples(media), server.url, batch_size=1, requests=200)
    expected = torch.stack([weighted(((one * 255).round() / 255)[None])[0] for one in media])
    assert len(set(expected.tolist())) == 200
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)  # the server may sum in other threads
    assert server.metric("samples_total") - before == 200


def test_a_server_that_is_killed_on_the_way_loses_nothing(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "FIRST_BACKOFF", 0.05)
    media = pictures(24)
    with serve_reward() as other:
        rewards = Rewards({"mine": RemoteConfig(url=(server.url, other.url), encoding="raw", batch_size=1, requests=8)})
        rewards.prepare(CPU)
        found: list[torch.Tensor] = []
        asking = threading.Thread(target=lambda: found.append(rewards(samples(media, hold=str(tmp_path)))["mine"]), daemon=True)
        asking.start()
        wait_until(lambda: other.metric("inside") == 4)
        assert server.metric("inside") == 4
        other.stop(signal.SIGKILL)
        (tmp_path / "go").touch()
        asking.join(120)
        torch.testing.assert_close(found[0], weighted(media), rtol=1e-6, atol=0)  # sums of other shapes round otherwise


def test_it_is_asked_while_the_next_samples_are_drawn(server: Served, tmp_path: Path) -> None:
    rewards = Rewards({"mine": RemoteConfig(url=server.url, encoding="raw")})
    scoring = rewards.start(samples(pictures(2), hold=str(tmp_path)))
    wait_until((tmp_path / "begun").exists)  # and this thread is free
    (tmp_path / "go").touch()
    assert torch.equal(scoring.result()["mine"], weighted(pictures(2)))


def test_no_token_is_in_what_a_run_writes(servers: tuple[Served, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T", "sesame-1234")
    config = RemoteConfig(url=servers[1].url, token_env="T")
    assert scores(samples(pictures(2)), servers[1].url, token_env="T").shape == (2,)
    assert "sesame" not in config.model_dump_json()


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=r"^mine: reward 'remote' needs httpx2: pip install 'flowfactory-rewards\[remote\]'$"):
        Rewards({"mine": RemoteConfig(url="http://host")})


def test_it_is_built_without_its_server() -> None:
    Rewards({"mine": RemoteConfig(url=dead(), token_env="NOT_SET_ANYWHERE")})


def test_a_server_may_be_written_in_anything() -> None:
    """The documented request is enough: this one counts parts by the standard library alone."""
    import email

    def answer(asked: Request) -> bytes:
        if asked.path == "/health":
            return HEALTH
        message = email.message_from_bytes(f"Content-Type: {asked.headers['content-type']}\r\n\r\n".encode() + asked.body)
        parts = {part.get_param("name", header="content-disposition"): part for part in message.get_payload()}  # type: ignore[union-attr]
        request = json.loads(parts["request"].get_payload(decode=True))
        sizes = [len(parts[sample["media"]["part"]].get_payload(decode=True)) for sample in request["samples"]]
        return json.dumps({"scores": sizes}).encode()

    with serve_answers(answer) as server:
        found = scores(samples(pictures(3)), server.url, encoding="raw8")
        assert found.tolist() == [3 * 16 * 16] * 3


def test_every_reward_that_asks_servers_says_what_it_sends() -> None:
    asking = []
    for component in discover().components["reward"].values():
        kind = config_class(component)
        if named := {"url", "token_env"} & set(kind.model_fields):
            assert named <= set(kind.sends_to), component.name
            asking.append(component.name)
    assert {"remote", "vlm", "pairwise"} <= set(asking)
