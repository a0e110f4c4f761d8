from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import judge
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from reward_server import samples
from scripted_server import Answer, Request, ScriptedServer, serve_answers

from flowfactory import Prompt, RunError, Samples, UserError
from flowfactory.rewards.scoring import Rewards
from flowfactory.testing import check_reward
from flowfactory_rewards import dependencies
from flowfactory_rewards.vlm import VlmConfig, parse_number


@pytest.fixture
def endpoint() -> Iterator[ScriptedServer]:
    with serve_answers(judge.yes_or_no) as server:
        yield server


config = partial(judge.configure, VlmConfig)


def scores(server: ScriptedServer, what: Samples, **options: Any) -> torch.Tensor:
    return Rewards({"mine": config(server, **options)})(what)["mine"]


def fails(server: ScriptedServer, **options: Any) -> str:
    with pytest.raises((RunError, UserError)) as caught:
        scores(server, grey(0.5), **options)
    said = str(caught.value)
    assert said.startswith("reward 'mine': ")
    assert "\n" not in said
    return said.removeprefix("reward 'mine': ")


def grey(*levels: float) -> Samples:
    return samples(torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous())


def asked_questions(server: ScriptedServer) -> list[Request]:
    return [asked for asked in server.asked if asked.path == "/v1/chat/completions"]


def always(answer: Answer | bytes) -> Callable[[Request], Answer | bytes]:
    return lambda asked: answer if asked.path.endswith("/chat/completions") else b"{}"


def test_it_keeps_the_contract(endpoint: ScriptedServer) -> None:
    found = check_reward(config(endpoint), grey(0.2, 0.8, 0.4, 1.0))
    assert found["under test"].tolist() == pytest.approx([0.2, 0.8, 0.4, 1.0], abs=1e-5)


def test_the_score_is_the_share_of_yes_over_all_spellings(endpoint: ScriptedServer) -> None:
    levels = [0, 51 / 255, 102 / 255, 1]
    assert scores(endpoint, grey(*levels)).tolist() == pytest.approx(levels, abs=1e-6)


def test_one_that_is_not_among_the_likeliest_has_no_share(endpoint: ScriptedServer) -> None:
    endpoint.answer = always(judge.completion("Yes", {"Yes": 0.9, "I": 0.1}))
    assert scores(endpoint, grey(0.5)).tolist() == [1]


def test_the_first_token_with_letters_counts(endpoint: ScriptedServer) -> None:
    first = {
        "token": "**",
        "logprob": -0.1,
        "top_logprobs": [{"token": "No", "logprob": -5.0}, {"token": "**", "logprob": -0.1}],
    }
    # the chosen token is not listed among the likeliest
    second = {"token": "Yes", "logprob": math.log(0.6), "top_logprobs": [{"token": "No", "logprob": math.log(0.2)}]}
    endpoint.answer = always(judge.completion("**Yes", logprobs={"content": [first, second]}))
    assert scores(endpoint, grey(0.5)).tolist() == pytest.approx([0.75])


def test_the_request_is_what_the_options_say(endpoint: ScriptedServer) -> None:
    scores(endpoint, grey(0.5))
    (asked,) = asked_questions(endpoint)
    assert {key: value for key, value in asked.json.items() if key != "messages"} == {
        "model": judge.MODEL,
        "temperature": 0,
        "max_tokens": 16,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert judge.texts(asked) == ['Does this figure show "prompt 0"? Please answer yes or no.']
    assert [message["role"] for message in asked.json["messages"]] == ["user"]
    extra = {
        "max_tokens": None,
        "max_completion_tokens": 4,
        "top_logprobs": 5,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    scores(endpoint, grey(0.5), system="Be strict.", extra_body=extra)
    asked = asked_questions(endpoint)[-1]
    assert asked.json["messages"][0] == {"role": "system", "content": "Be strict."}
    assert "max_tokens" not in asked.json
    assert {key: asked.json[key] for key in extra if key != "max_tokens"} == {
        k: v for k, v in extra.items() if k != "max_tokens"
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_the_judge_sees_the_picture_itself(endpoint: ScriptedServer, channels: int) -> None:
    media = torch.rand(2, channels, 9, 7, generator=torch.Generator().manual_seed(1))
    scores(endpoint, samples(media), requests=1)
    for asked, picture in zip(asked_questions(endpoint), media, strict=True):
        expected = np.rint(picture.movedim(0, -1).numpy() * 255).astype(np.uint8)
        assert np.array_equal(judge.pictures(asked)[0], expected if channels == 3 else expected[..., 0])


def test_of_a_video_evenly_spread_frames_are_seen_in_one_message(endpoint: ScriptedServer) -> None:
    clip = torch.linspace(0, 1, 9).view(1, 9, 1, 1, 1).expand(1, 9, 3, 8, 8)
    assert scores(endpoint, samples(clip), frames=3).tolist() == pytest.approx([0.5], abs=2e-3)
    (asked,) = asked_questions(endpoint)
    assert judge.brightness(asked) == pytest.approx([0, 0.5, 1], abs=3e-3)


def test_pictures_that_a_prompt_brings_come_first_if_wanted(endpoint: ScriptedServer, tmp_path: Path) -> None:
    white = tmp_path / "white.png"
    Image.new("L", (4, 4), 255).save(white)
    what = replace(grey(0.2), sources=(Prompt("p", images=(white,)),))
    scores(endpoint, what, sources=True)
    scores(endpoint, what)
    with_it, without = asked_questions(endpoint)
    assert judge.brightness(with_it) == pytest.approx([1, 0.2])
    assert judge.brightness(without) == pytest.approx([0.2])


def test_the_question_is_filled_with_the_prompt_and_its_metadata(endpoint: ScriptedServer) -> None:
    what = replace(grey(0.5, 0.5), metadata=({"count": 3, "colour": "red"}, {"count": 4, "colour": "{prompt}"}))
    scores(endpoint, what, question='{count} {colour} in "{prompt}"? As {{"answer": "yes"}}.', requests=1)
    assert [judge.texts(asked)[0] for asked in asked_questions(endpoint)] == [
        '3 red in "prompt 0"? As {"answer": "yes"}.',
        '4 {prompt} in "prompt 1"? As {"answer": "yes"}.',
    ]


def test_a_key_that_a_prompt_lacks_is_an_error(endpoint: ScriptedServer) -> None:
    said = fails(endpoint, question="{count} of {prompt}?")
    assert said == "the prompt 'prompt 0' has no metadata 'count', which the question needs"


@pytest.mark.parametrize("question", ["{prompt", "{0}", "{}", "{prompt.text}", "{prompt[0]}", "{prompt!r}", "{prompt:>9}", "}"])
def test_a_question_that_is_no_template_is_refused(question: str) -> None:
    with pytest.raises(ValidationError, match=r"brace|'}'|'{'"):
        VlmConfig(url="http://host", model="m", question=question)


@pytest.mark.parametrize(
    ("said", "value"),
    [("8", 8), (" 7.5 ", 7.5), ("**9**", 9), ("8/10", 8), ("8 / 10.", 8), ("10", 10), ("1", 1), ("+3.", 3)],
)
def test_a_number_alone_is_read(said: str, value: float) -> None:
    assert parse_number(said, 1, 10) == value


def test_numbers_are_scaled_to_one_or_not(endpoint: ScriptedServer) -> None:
    endpoint.answer = always(judge.completion("4"))
    assert scores(endpoint, grey(0.5), answer="score", range=(0, 5)).tolist() == pytest.approx([0.8])
    assert scores(endpoint, grey(0.5), answer="score", range=(0, 5), scale=False).tolist() == [4]
    asked = asked_questions(endpoint)[0]
    assert "logprobs" not in asked.json
    assert judge.texts(asked)[0] == (
        'How well does this figure show "prompt 0"? Answer with a number from 0 (not at all) to 5 (exactly) alone.'
    )


def test_a_pattern_finds_the_number_in_an_answer(endpoint: ScriptedServer) -> None:
    endpoint.answer = always(judge.completion("It has 3 cats, as asked.\nScore: 8.5"))
    options: Any = {"answer": "score", "scale": False}
    assert scores(endpoint, grey(0.5), pattern=r"Score: ([\d.]+)", **options).tolist() == [8.5]
    assert "no number alone" in fails(endpoint, retries=0, **options)


OFF: dict[str, tuple[dict[str, Any], bytes, str]] = {
    "neither": (
        {},
        judge.completion("I", {"I": 0.9, "Sorry": 0.08, "Yes": 0.004, "No": 0.001}),
        "'yes' and 'no' have 0.005 of the probability among its 4 likeliest tokens ('I' 0.900, 'Sorry' 0.080, 'Yes' 0.004 …)",
    ),
    "no logprobs": ({}, judge.completion("Yes"), "it has no logprobs; the endpoint must give them"),
    "no word": ({}, judge.completion("?!", {"?!": 1.0}), "it has no word: '?!'"),
    "refused": ({}, judge.completion(None, message={"refusal": "I will not"}), "it refused: 'I will not'"),
    "filtered": ({}, judge.completion("", finish_reason="content_filter"), "it was held back by a content filter"),
    "no json": ({}, b"<html>", "the answer: invalid json: expected value at line 1 column 1: '<html>'"),
    "no choices": (
        {},
        b'{"choices": []}',
        "choices: list should have at least 1 item after validation, not 0: '{\"choices\": []}'",
    ),
    "another protocol": ({}, b'{"answer": "yes"}', 'choices: field required: \'{"answer": "yes"}\''),
    "no probability": (
        {},
        judge.completion("Yes", logprobs={"content": [{"token": "Yes", "logprob": "high"}]}),
        "choices.0.logprobs.content.0.logprob: input should be a valid number",
    ),
    "no words": ({"answer": "score"}, judge.completion("", finish_reason="length"), "it said nothing (finish_reason length)"),
    "no number": ({"answer": "score"}, judge.completion("quite good"), "no number alone: 'quite good'"),
    "two numbers": ({"answer": "score"}, judge.completion("from 1 to 10: 8"), "no number alone: 'from 1 to 10: 8'"),
    "of another range": ({"answer": "score"}, judge.completion("3/5"), "no number alone: '3/5'"),
    "too large": ({"answer": "score"}, judge.completion("11"), "11 is not from 1 to 10"),
    "not finite": ({"answer": "score", "pattern": "(.*)"}, judge.completion("nan"), "nan is not from 1 to 10"),
    "no number for the pattern": (
        {"answer": "score", "pattern": "S: (.*)"},
        judge.completion("S: eight"),
        "no number alone: 'S: eight'",
    ),
}


@pytest.mark.parametrize(("options", "answer", "said"), OFF.values(), ids=OFF)
def test_an_answer_that_cannot_be_used_is_asked_for_again_and_then_an_error(
    endpoint: ScriptedServer, options: dict[str, Any], answer: bytes, said: str
) -> None:
    endpoint.answer = always(answer)
    told = fails(endpoint, retries=2, **options)
    assert told.startswith(f"{endpoint.url}/v1: no answer of bright-judge could be used in 3; the last: {said}")
    assert len(asked_questions(endpoint)) == 3


def test_an_answer_that_can_be_used_in_the_end_is(endpoint: ScriptedServer) -> None:
    answers = [judge.completion("hm", {"hm": 1.0}), (500, b"{}", {}), judge.completion("Yes", {"Yes": 0.3, "No": 0.1})]
    endpoint.answer = lambda asked: answers.pop(0) if asked.path.endswith("completions") else b"{}"
    assert scores(endpoint, grey(0.5)).tolist() == pytest.approx([0.75])
    assert not answers


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, b'{"error": {"message": "The model `m` does not exist"}}', {}), "answered 404, The model `m` does not exist"),
        ((400, b'{"object": "error", "message": "At most 1 image(s)"}', {}), "answered 400, At most 1 image(s)"),
        ((500, b"", {}), "no answer in 2 tries; the last: 500, ''"),
    ],
)
def test_an_error_of_the_endpoint_is_one_of_the_run(endpoint: ScriptedServer, answer: Answer, said: str) -> None:
    endpoint.answer = always(answer)
    assert fails(endpoint, retries=1) == f"{endpoint.url}/v1: {said}"


def test_questions_are_asked_at_once_and_answers_in_order(endpoint: ScriptedServer) -> None:
    together = threading.Barrier(4)

    def answer(asked: Request) -> Answer | bytes:
        if asked.path.endswith("completions"):
            together.wait(60)
        return judge.yes_or_no(asked)

    endpoint.answer = answer
    levels = [i / 255 for i in range(0, 240, 20)]
    assert scores(endpoint, grey(*levels), requests=4).tolist() == pytest.approx(levels, abs=1e-6)
    assert endpoint.most_at_once == 4


def test_a_key_goes_along_and_a_wrong_one_ends_the_run_before_anything_is_drawn(
    endpoint: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "sk-sesame")
    scores(endpoint, grey(0.5), token_env="KEY")
    assert {asked.headers["authorization"] for asked in endpoint.asked} == {"Bearer sk-sesame"}
    endpoint.answer = lambda asked: (401, b'{"error": {"message": "Incorrect API key provided: sk-sesame"}}', {})
    rewards = Rewards({"mine": config(endpoint, token_env="KEY")})
    with pytest.raises(RunError, match=r"^reward 'mine': .*/v1: answered 401, Incorrect .*: \*\*\*; see what KEY holds$"):
        rewards.prepare(torch.device("cpu"))


def test_an_endpoint_that_lists_no_models_is_one(endpoint: ScriptedServer) -> None:
    endpoint.answer = lambda asked: judge.yes_or_no(asked) if asked.path.endswith("completions") else (404, b"", {})
    assert scores(endpoint, grey(0.4)).tolist() == pytest.approx([0.4])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"range": (5, 5)}, r"\[5\.0, 5\.0\] must rise"),
        ({"pattern": "no group"}, "must have one group, which is the number"),
        ({"pattern": "("}, "is no regular expression"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        VlmConfig(url="http://host", model="m", **options)


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=r"^reward 'vlm' needs httpx2: pip install 'flowfactory-rewards\[vlm\]'$"):
        VlmConfig(url="http://host", model="m").build("mine")


def test_batches_may_be_divided_anywhere() -> None:
    assert Rewards({"mine": VlmConfig(url="http://host", model="m")}).pointwise


def test_what_is_dumped_is_read_again() -> None:
    made = VlmConfig(url=("http://a", "http://b"), model="m", question="{prompt}?", extra_body={"top_logprobs": None})
    assert VlmConfig.model_validate(json.loads(made.model_dump_json())) == made


NUMBERS = r'{"follows": 20, "complete": 15, "natural": 10, "clean": 25}'
PATTERNS = tuple(rf'"{name}": (?P<{name}>[\d.]+)' for name in ("follows", "complete", "natural", "clean"))
EDIT = {"product-root": [{"min": ["follows", "complete"]}, {"min": ["natural", "clean"]}]}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", (20 + 15 + 10 + 25) / 100),
        ("min", 10 / 25),
        ("product-root", (20 * 15 * 10 * 25) ** 0.25 / 25),
        ({"follows": 3, "clean": 1}, (3 * 20 + 25) / 100),
        (EDIT, math.sqrt(15 * 10) / 25),
        ({"mean": ["follows", {"min": ["natural", "clean"]}]}, (20 + 10) / 50),
    ],
    ids=str,
)
def test_several_numbers_of_one_answer_become_one_score(endpoint: ScriptedServer, how: Any, expected: float) -> None:
    endpoint.answer = always(judge.completion(f"Here: {NUMBERS}"))
    options: Any = {"answer": "score", "range": (0, 25), "patterns": PATTERNS, "combine": how}
    assert scores(endpoint, grey(0.5), **options).tolist() == pytest.approx([expected])
    if how == "min":
        assert scores(endpoint, grey(0.5), scale=False, **options).tolist() == [10]


def test_a_number_that_is_lacking_or_out_of_range_is_named(endpoint: ScriptedServer) -> None:
    options: Any = {"answer": "score", "range": (0, 25), "patterns": PATTERNS, "retries": 0}
    endpoint.answer = always(judge.completion(NUMBERS.replace('"clean": 25', "")))
    assert "no number 'clean'" in fails(endpoint, **options)
    endpoint.answer = always(judge.completion(NUMBERS.replace("25", "26")))
    assert "26 is not from 0 to 25" in fails(endpoint, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"patterns": [r"(\d+)"]}, r"has no named group; write one, such as \(\?P<style>"),
        ({"patterns": [r"(?P<a>\d+)", r"x(?P<a>\d+)"]}, "two groups are called 'a'"),
        ({"patterns": ["(?P<a>"]}, "is no regular expression"),
        ({"patterns": [r"(?P<a>\d)"], "pattern": r"(\d)"}, "are for answer: score, in the place of pattern"),
        ({"patterns": [r"(?P<a>\d)"], "answer": "yes-no"}, "are for answer: score"),
        ({"combine": "min"}, "is for several numbers; name them by patterns"),
        ({"patterns": [r"(?P<a>\d)"], "combine": {"b": 1}}, "combine: 'b' is none of what the patterns name, a"),
        ({"patterns": [r"(?P<a>\d)"], "combine": {"min": ["a", "b"]}}, "combine: 'b' is none"),
        ({"patterns": [r"(?P<a>\d)"], "combine": {"min": ["a"], "mean": ["a"]}}, "names several ways"),
        ({"patterns": [r"(?P<a>\d)"], "combine": {"min": "a"}}, "give a list of names"),
        ({"patterns": [r"(?P<a>\d)"], "combine": {"a": "much"}}, "its weight is 'much'; give a number"),
        ({"patterns": [r"(?P<a>\d)(?P<b>\d)"], "combine": {"a": 1, "b": -1}}, "the weights add up to 0"),
    ],
    ids=str,
)
def test_several_numbers_that_mean_nothing_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        VlmConfig(url="http://host", model="m", **{"answer": "score", **options})


def test_several_answers_are_averaged(endpoint: ScriptedServer) -> None:
    said = iter(["1", "2", "6", "9"])
    endpoint.answer = lambda asked: judge.completion(next(said)) if asked.path.endswith("/chat/completions") else b"{}"
    options: Any = {"answer": "score", "scale": False, "passes": 2, "requests": 1, "extra_body": {"temperature": 1}}
    assert scores(endpoint, grey(0.5, 0.6), **options).tolist() == [1.5, 7.5]
    assert [asked.json["temperature"] for asked in asked_questions(endpoint)] == [1] * 4
    config: Any = None
    told = list(VlmConfig(url="http://host", model="m", passes=2).remarks(config))
    assert told == ["passes 2 of vlm: at temperature 0 all answers are the same; set extra_body: {temperature: 1}"]
    assert list(VlmConfig(url="http://host", model="m", passes=2, extra_body={"temperature": 0.7}).remarks(config)) == []
