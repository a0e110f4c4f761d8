from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import judge
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from reward_server import samples
from scripted_server import ScriptedServer, serve_answers

from flowfactory import Prompt, RunError, Samples, UserError
from flowfactory.rewards.scoring import Rewards
from flowfactory.testing import check_reward
from flowfactory_rewards import dependencies
from flowfactory_rewards.pairwise import PairwiseConfig, choose_pairs

LEVELS = [0.2, 0.8, 0.4, 1.0, 0.6]


@pytest.fixture
def endpoint() -> Iterator[ScriptedServer]:
    with serve_answers(judge.a_or_b) as server:
        yield server


config = partial(judge.configure, PairwiseConfig)


def scores(server: ScriptedServer, what: Samples, **options: Any) -> list[float]:
    return Rewards({"mine": config(server, **options)})(what)["mine"].tolist()


def grey(levels: list[float], groups: list[int] | None = None) -> Samples:
    return samples(torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous(), groups)


def questions(server: ScriptedServer) -> int:
    return sum(asked.path == "/v1/chat/completions" for asked in server.asked)


def expected(levels: list[float]) -> list[float]:
    """The judge's liking for A cancels: i beats j with 0.5 + 0.35 (i - j)."""
    others = [[b for j, b in enumerate(levels) if j != i] for i in range(len(levels))]
    return [sum(0.5 + 0.35 * (a - b) for b in rest) / len(rest) for a, rest in zip(levels, others, strict=True)]


def test_it_keeps_the_contract(endpoint: ScriptedServer) -> None:
    found = check_reward(config(endpoint), grey(LEVELS), pointwise=False)
    assert found["under test"].tolist() == pytest.approx(expected(LEVELS), abs=1e-6)


def test_a_win_rate_is_the_mean_over_opponents_of_both_orders(endpoint: ScriptedServer) -> None:
    found = scores(endpoint, grey(LEVELS))
    assert found == pytest.approx(expected(LEVELS), abs=1e-6)
    assert sum(found) / 5 == pytest.approx(0.5)
    assert questions(endpoint) == 5 * 4
    shown = Counter(tuple(round(level, 1) for level in judge.brightness(asked)) for asked in endpoint.asked[1:])
    assert shown == Counter((a, b) for a in LEVELS for b in LEVELS if a != b)


def test_equals_are_even_though_the_judge_likes_a(endpoint: ScriptedServer) -> None:
    assert scores(endpoint, grey([0.4, 0.4, 0.4])) == pytest.approx([0.5] * 3, abs=1e-7)


def test_only_members_of_a_group_meet(endpoint: ScriptedServer) -> None:
    found = scores(endpoint, grey([0.2, 0.8, 1.0, 0.6, 0.4], [7, 7, 3, 3, 3]))
    assert found == pytest.approx([*expected([0.2, 0.8]), *expected([1.0, 0.6, 0.4])], abs=1e-6)
    assert questions(endpoint) == 2 + 6


def test_the_only_member_of_a_group_neither_wins_nor_loses(endpoint: ScriptedServer) -> None:
    assert scores(endpoint, grey([0.2, 0.9], [0, 1])) == [0.5, 0.5]
    assert questions(endpoint) == 0


def test_the_letter_alone_may_be_read(endpoint: ScriptedServer) -> None:
    # by likings of 0.1 of 0.35: those that differ by less than 0.29 are even, one win for each order
    assert scores(endpoint, grey([0.0, 0.2, 1.0]), answer="choice") == [0.25, 0.25, 1.0]
    assert "logprobs" not in endpoint.asked[-1].json


@pytest.mark.parametrize("size", range(2, 12))
@pytest.mark.parametrize("opponents", range(1, 12))
def test_everybody_meets_as_many(size: int, opponents: int) -> None:
    met = choose_pairs(size, opponents)
    assert len(set(met)) == len(met)
    assert all(0 <= i < j < size for i, j in met)
    degrees = Counter(member for pair in met for member in pair)
    wanted = min(opponents, size - 1)
    assert set(degrees.values()) == {wanted + (wanted * size) % 2}
    assert set(degrees) == set(range(size))
    assert met == choose_pairs(size, opponents)


def test_all_meet_all() -> None:
    assert choose_pairs(5, "all") == list(combinations(range(5), 2))


def test_fewer_opponents_ask_fewer_questions(endpoint: ScriptedServer) -> None:
    found = scores(endpoint, grey([0.0, 0.2, 0.4, 1.0]), opponents=2)
    beats = lambda a, b: 0.5 + 0.35 * (a - b)  # noqa: E731
    ring = [0.0, 0.2, 0.4, 1.0]
    by_hand = [(beats(ring[i], ring[i - 1]) + beats(ring[i], ring[(i + 1) % 4])) / 2 for i in range(4)]
    assert found == pytest.approx(by_hand, abs=2e-3)
    assert questions(endpoint) == 8


def test_the_message_names_both_and_asks(endpoint: ScriptedServer, tmp_path: Path) -> None:
    black = tmp_path / "black.png"
    Image.new("RGB", (4, 4)).save(black)
    sources = (Prompt("p", images=(black,)),) * 2
    clip = torch.tensor([0.2, 0.8]).view(2, 1, 1, 1, 1).expand(2, 4, 3, 8, 8)
    what = replace(samples(clip), sources=sources, metadata=({"n": 3},) * 2)
    scores(endpoint, what, sources=True, frames=2, question="Of {n}, {prompt}?", requests=1)
    asked = endpoint.asked[1]
    kinds = [part["text"] if part["type"] == "text" else "picture" for part in asked.json["messages"][-1]["content"]]
    assert kinds == ["Given:", "picture", "A:", "picture", "picture", "B:", "picture", "picture", "Of 3, prompt 0?"]
    assert judge.brightness(asked) == pytest.approx([0, 0.2, 0.2, 0.8, 0.8])


@pytest.mark.parametrize(
    ("options", "answer", "said"),
    [
        ({}, judge.completion("Both", {"Both": 1.0}), "'a' and 'b' have 0 of the probability among its 1 likeliest tokens"),
        ({"answer": "choice"}, judge.completion("Neither"), "neither A nor B: 'Neither'"),
        ({"answer": "choice"}, judge.completion("AB"), "neither A nor B: 'AB'"),
    ],
)
def test_an_answer_that_cannot_be_used_is_an_error_and_no_draw(
    endpoint: ScriptedServer, options: dict[str, Any], answer: bytes, said: str
) -> None:
    endpoint.answer = lambda asked: answer if asked.path.endswith("completions") else b"{}"
    with pytest.raises(RunError) as caught:
        scores(endpoint, grey([0.2, 0.4]), retries=1, requests=1, **options)
    start = f"reward 'mine': {endpoint.url}/v1: no answer of bright-judge could be used in 2; the last: "
    assert str(caught.value).startswith(start + said)
    assert questions(endpoint) == 2


def test_it_wants_whole_groups() -> None:
    assert not Rewards({"mine": PairwiseConfig(url="http://host", model="m")}).pointwise


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=r"^reward 'pairwise' needs httpx2: pip install 'flowfactory-rewards\[pairwise\]'$"):
        PairwiseConfig(url="http://host", model="m").build("mine")


def test_a_letter_is_found_in_a_longer_answer_and_ties_count_half(endpoint: ScriptedServer) -> None:
    options: Any = {"answer": "choice", "pattern": r'"better": "(\w+)"', "ties": ["tie", "C"], "retries": 0}
    for said, found in (("A", [0.5, 0.5]), ("tie", [0.5, 0.5]), ("c", [0.5, 0.5])):  # of both orders the first
        text = f'{{"why": "B is dull", "better": "{said}"}}'
        endpoint.answer = lambda asked, text=text: judge.completion(text) if asked.path.endswith("/chat/completions") else b"{}"
        assert scores(endpoint, grey([0.2, 0.8]), **options) == found
    answers = iter(['{"better": "A"}', '{"better": "tie"}'])
    endpoint.answer = lambda asked: judge.completion(next(answers)) if asked.path.endswith("/chat/completions") else b"{}"
    assert scores(endpoint, grey([0.2, 0.8]), requests=1, **options) == [0.75, 0.25]
    endpoint.answer = lambda asked: judge.completion("A") if asked.path.endswith("/chat/completions") else b"{}"
    with pytest.raises(RunError, match="neither A nor B: 'A'"):
        scores(endpoint, grey([0.2, 0.8]), **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ties": ["C"]}, "pattern and ties are for answer: choice"),
        ({"answer": "choice", "pattern": "A|B"}, "must have one group, which is the letter"),
        ({"answer": "choice", "pattern": "("}, "is no regular expression"),
    ],
)
def test_a_pattern_that_finds_no_letter_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        PairwiseConfig(url="http://host", model="m", **options)
