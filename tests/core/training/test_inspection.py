"""What a model drew and encoded is looked at once, wherever it is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faulty_model
import pytest
import torch

from flowfactory import Canvas, Prompt
from flowfactory.errors import RunError, UserError
from flowfactory.training.inspection import check_range, clamp_media
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.setup import Run
from flowfactory.types import Trajectory

Change = dict[str, Any]
FIRST = "for the prompt 'green' and 7 more of 8 samples"  # of the first iteration
DECODED = f"the model drew media that are not finite {FIRST}, of latents that are; look at "


def faulty(fault: str | None, **options: Any) -> Change:
    model = {"name": "faulty", "p": 0.1, "q": 0.2, "fault": fault, **options}
    return {"model": model, "plugins": [str(Path(__file__).parents[1] / "toy_plugin.py"), faulty_model.FILE]}


def refusal(trained: Callable[..., Any], change: Change, kind: type[Exception] = RunError) -> str:
    with pytest.raises(kind) as refused:
        trained(change)
    return str(refused.value).removesuffix("; there is no checkpoint yet")


def test_a_model_without_a_fault_trains(trained: Callable[..., Any]) -> None:
    trained(faulty(None))


@pytest.mark.parametrize("fault", ["velocity", "element"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_the_step_and_the_prompt_of_latents_that_are_not_finite_are_told(
    trained: Callable[..., Any], fault: str, value: str
) -> None:
    told = refusal(trained, faulty(fault, value=value, after=0.5, length=len("yellow")))
    assert told == (
        "the model drew latents that are not finite for the prompt 'yellow' and 3 more of 8 samples, from step 3 of 4 on "
        "(sigma 0.5 to 0.25); look at its transformer: the weights, and the dtype that training.precision gives them"
    )


def test_the_first_and_the_last_step_are_told(trained: Callable[..., Any]) -> None:
    assert "from step 1 of 4 on (sigma 1 to 0.75)" in refusal(trained, faulty("velocity"))
    assert "from step 4 of 4 on (sigma 0.25 to 0)" in refusal(trained, faulty("velocity", after=0.25))


def test_what_is_not_finite_before_the_first_step_is_told(trained: Callable[..., Any]) -> None:
    assert refusal(trained, faulty("start")) == (
        f"the model drew latents that are not finite {FIRST}, from before the first step on; look at what it starts from"
    )


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_decoder_that_is_not_finite_is_told_from_a_transformer(trained: Callable[..., Any], value: str) -> None:
    assert refusal(trained, faulty("media", value=value)) == DECODED + "its decoder: the weights of the VAE, and its dtype"


def test_what_is_drawn_to_evaluate_is_looked_at_too(trained: Callable[..., Any]) -> None:
    change = {**faulty("media", length=len("orange")), "prompts": {"train": "short.txt"}}
    Path("short.txt").write_text("red\nblue\nwhite\n")
    assert refusal(trained, change).startswith("the model drew media that are not finite for the prompt 'orange', of ")


def test_sampling_and_evaluating_a_run_look_too(
    trained: Callable[..., Any], invoke: Callable[..., Any], tmp_path: Path
) -> None:
    trained(faulty(None))
    run, broken = tmp_path / "run", ("--set", "model.fault=media")
    for code, out, err in (invoke("sample", run, "a cat", *broken), invoke("eval", run, *broken)):
        assert code == 1
        assert "the model drew media that are not finite for the prompt " in out + err
    assert not list((run / "samples" / "drawn").iterdir())


def test_conditions_that_are_not_finite_name_the_prompt_and_are_not_kept(trained: Callable[..., Any], tmp_path: Path) -> None:
    change = faulty("conditions", length=len("yellow"))
    told = "the model's encode made 'embeds' that is not finite, for the prompt 'yellow'; look at the weights and the dtype of"
    for _ in range(2):
        assert refusal(trained, change, RunError).startswith(told)
    assert len(list((tmp_path / "cache" / "conditions").glob("??/*"))) == 3  # of the prompts before it


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("above-zero", "model: its sigmas end at 0.1; they must end at 0, clean latents"),
        ("above-one", "model: its sigmas begin at 1.1; they must begin at 1, noise"),
        ("short", "model: its sigmas have shape [4] for 4 steps; return [5], with the 0 at the end"),
        ("rising", "model: its sigmas are [1.0, 0.5, 0.25, 0.75, 0.0]; each must be below the one before"),
        ("broadcast", "model: its velocity has shape [8, 1, 4, 1] where its latents have [8, 1, 4, 4]"),
        ("large", "model: it drew 8 x 4 pixels on a canvas of 4 x 4 pixels; "),
        ("moving", "model: it drew 3 frames of 4 x 4 pixels on a canvas of 4 x 4 pixels; "),
        ("flat", "model: it drew media [8, 4, 4]; return [B, C, H, W], or [B, F, C, H, W]"),
        ("single", "model: it drew media [1, 1, 4, 4] for 8 samples; return [8, ...]"),
        ("blocks", "model: its blocks name 'LinearBlock', which is no class of its repeated blocks; there are none"),
    ],
)
def test_a_mistake_of_a_model_ends_a_run_in_one_sentence(trained: Callable[..., Any], fault: str, sentence: str) -> None:
    assert refusal(trained, faulty(fault), UserError).startswith(sentence)


@pytest.mark.parametrize("fault", ["signed", "bytes"])
def test_media_of_another_range_are_refused_before_anything_is_trained(trained: Callable[..., Any], fault: str) -> None:
    assert refusal(trained, faulty(fault)).startswith("the model's media lie outside [0, 1] by ")


def test_media_that_training_led_out_of_their_range_do_not_stop_a_resumed_run(trained: Callable[..., Any]) -> None:
    trained({**faulty(None), "training": {"iterations": 2}})
    trained({**faulty("signed"), "training": {"iterations": 3}}, resume=True)


def test_prompts_that_no_encoder_reads_are_refused(trained: Callable[..., Any]) -> None:
    assert refusal(trained, faulty("unread")) == (
        "preflight: 'embeds' in the conditions of 'red' and 'blue', and 5 more prompts, is the same for all; look at the "
        "tokenizer and the text encoder of model.path, and at how many tokens of a prompt they keep"
    )


def test_a_negative_prompt_that_no_encoder_reads_is_refused(trained: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a cat\n")
    change = {**faulty("blind", guided=True), "prompts": {"train": "one.txt", "heldout": None}}
    assert refusal(trained, change).startswith(
        "preflight: the negative prompt '' has the conditions of the prompt 'a cat', so that guidance does nothing; look at "
    )


def test_encode_is_told_which_prompt_is_the_negative_one(prepared: Callable[..., Run]) -> None:
    run = prepared({"model": {"name": "net", "train": "full", "guided": True}})
    asked: list[Prompt] = []
    canvas = Canvas(4, 4)

    def encode(prompts: list[Prompt], canvas: Canvas) -> list[dict[str, torch.Tensor]]:
        asked.extend(prompts)
        return [{"length": torch.tensor(float(prompt.is_negative))} for prompt in prompts]

    run.sampler._cache._encode = encode  # type: ignore[assignment]
    known = run.sampler.conditions([Prompt(""), Prompt("new", negative="old")], 2.0, canvas)
    assert [(prompt.text, prompt.is_negative) for prompt in asked] == [("", False), ("new", False), ("old", True)]
    assert known.entries[0]["length"] == 0.0
    assert known.negative is not None
    assert [float(entry["length"]) for entry in known.negative.entries] == [0.0, 1.0]


def test_what_is_kept_of_media_is_clamped_and_how_far_they_were_beyond(prepared: Callable[..., Run]) -> None:
    media = torch.tensor([[0.0, 1.0], [-0.2, 1.0], [0.5, 1.5], [-1.0, 1.0], [math.inf, 0.5], [math.nan, 0.5]])
    drawn = clamp_media(Trajectory(media.reshape(6, 1, 1, 2), media, torch.ones(2)))
    assert drawn.media.flatten(1)[:4].tolist() == [[0, 1], [0, 1], [0.5, 1], [0, 1]]
    assert drawn.overshoot is not None
    expected = torch.tensor([0, 0.07 / 0.65, 0.22 / 0.55, 0.47 / 1.05], dtype=torch.float64)
    torch.testing.assert_close(drawn.overshoot[:4].double(), expected)
    assert not drawn.overshoot[4:].isfinite().any()


def test_white_that_is_drawn_a_little_too_white_is_let_through() -> None:
    white = torch.full((1, 3, 8, 8), 1.02)
    plain = clamp_media(Trajectory(white, white, torch.ones(2)))
    assert plain.overshoot is not None
    check_range(plain.overshoot.tolist())
    white = white.clone()
    white[..., 2:6, 2:6] = 0.1
    drawn = clamp_media(Trajectory(white, white, torch.ones(2)))
    assert drawn.overshoot is not None
    check_range(drawn.overshoot.tolist())
    with pytest.raises(
        RunError, match=r"by .* of their contrast, and 0.15 is the most that a decoder overshoots; draw in more"
    ):
        check_range(clamp_media(replace(drawn, media=2 * white - 1)).overshoot.tolist())  # type: ignore[union-attr]


def test_looking_costs_nothing_of_the_samples(prepared: Callable[..., Run]) -> None:
    """The same numbers as without, and no step recorded beside those that the plan names."""
    run = prepared()
    looked = collect_rollouts(run, 0, Timer(torch.device("cpu"))).experience
    run.sampler.inspects = False
    plain = collect_rollouts(run, 0, Timer(torch.device("cpu"))).experience
    assert torch.equal(looked.latents, plain.latents)
    assert len(looked.steps) == len(plain.steps) == len(looked.plan.recorded)
