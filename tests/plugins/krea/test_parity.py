"""The plugin draws what diffusers' own Krea2Pipeline draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from families import draw_one_by_one, relative_difference

from flowfactory import Trajectory
from flowfactory.testing import Bench, Drawn, check_encode_media

LONG = "a photo of a red circle and a blue square, " * 2
PROMPTS = ("a photo of a red circle", LONG)
Both = Callable[..., tuple[Trajectory, Drawn]]


@pytest.fixture(scope="module")
def both(bench_of: Callable[..., Bench], pipeline_of: Any, drawn_by: Any) -> Both:
    """``both(folder, …)``: our trajectory, and what the pipeline drew from the same noise."""
    pipeline_for = lru_cache(pipeline_of)

    def draw(folder: Path, prompts: Any = PROMPTS, **given: Any) -> tuple[Trajectory, Drawn]:
        made = bench_of(folder, prompts, **given)
        return made.draw(len(prompts)), drawn_by(pipeline_for(folder), made)

    return draw


@pytest.mark.parametrize("guidance", [0.0, 1.5, 4.5])
@pytest.mark.parametrize("distilled", [False, True], ids=["raw", "turbo"])
def test_ode_latents_and_pictures_are_the_pipelines(both: Both, checkpoint: Any, distilled: bool, guidance: float) -> None:
    ours, theirs = both(checkpoint(distilled), guidance=guidance)
    assert relative_difference(ours.sigmas, theirs.sigmas) < 1e-6
    assert relative_difference(ours.latents, theirs.latents) < 1e-5
    assert ours.media.shape == (2, 3, 32, 32)
    assert relative_difference(ours.media, theirs.media) < 1e-5


@pytest.mark.parametrize("distilled", [False, True], ids=["raw", "turbo"])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_any_number_of_steps_is_the_pipelines(both: Both, checkpoint: Any, steps: int, distilled: bool) -> None:
    ours, theirs = both(checkpoint(distilled), steps=steps)
    assert relative_difference(ours.latents, theirs.latents) < 1e-5


@pytest.mark.parametrize("size", [(32, 48), (64, 16), (16, 16)])
def test_a_picture_need_not_be_square(both: Both, checkpoint: Any, size: tuple[int, int]) -> None:
    ours, theirs = both(checkpoint(), size=size, guidance=3.0)
    assert ours.media.shape[-2:] == size
    assert relative_difference(ours.latents, theirs.latents) < 1e-5
    assert relative_difference(ours.media, theirs.media) < 1e-5


@pytest.mark.parametrize("prompt", ["", "cat", LONG, LONG * 3], ids=["empty", "short", "long", "cut"])
def test_a_prompt_of_any_length_is_the_pipelines(both: Both, checkpoint: Any, prompt: str) -> None:
    ours, theirs = both(checkpoint(), (prompt,), guidance=2.0)
    assert relative_difference(ours.latents, theirs.latents) < 1e-5


def test_a_negative_prompt_is_what_the_pipeline_makes_of_it(both: Both, checkpoint: Any) -> None:
    ours, theirs = both(checkpoint(), guidance=4.0, negative="blurry square")
    assert relative_difference(ours.latents, theirs.latents) < 1e-5
    empty, _ = both(checkpoint(), guidance=4.0)
    assert relative_difference(ours.latents, empty.latents) > 1e-3, "the negative prompt changes nothing"


def test_what_is_drawn_depends_on_the_prompt_the_shift_and_guidance(bench_of: Any, checkpoint: Any) -> None:
    plain = bench_of(checkpoint(), ("red circle",)).draw(1).latents
    assert relative_difference(bench_of(checkpoint(), ("blue cat",)).draw(1).latents, plain) > 1e-3
    assert relative_difference(bench_of(checkpoint(True), ("red circle",)).draw(1).latents, plain) > 1e-3
    assert relative_difference(bench_of(checkpoint(), ("red circle",), guidance=4.0).draw(1).latents, plain) > 1e-3


def test_guidance_of_one_is_off_unlike_in_the_pipeline(bench_of: Any, pipeline_of: Any, drawn_by: Any, checkpoint: Any) -> None:
    made = bench_of(checkpoint(), PROMPTS, guidance=1.0)
    ours, pipeline = made.draw(2).latents, pipeline_of(checkpoint())
    assert relative_difference(ours, drawn_by(pipeline, made, guidance_scale=0.0).latents) < 1e-5
    assert relative_difference(ours, drawn_by(pipeline, made).latents) > 1e-3


@pytest.mark.parametrize("guidance", [0.0, 4.0])
def test_prompts_of_any_lengths_share_a_forward_exactly(bench_of: Any, checkpoint: Any, guidance: float) -> None:
    prompts = ("cat", LONG, "", "a photo of a red circle", LONG * 3)
    made = bench_of(checkpoint(), prompts, (32, 48), guidance=guidance, negative="blurry " * 20)
    calls = []
    made.policy.modules["transformer"].register_forward_hook(
        lambda module, args, given, output: calls.append(len(given["hidden_states"])), with_kwargs=True
    )
    together = made.draw(len(prompts)).latents
    assert calls == [5 if guidance == 0 else 10] * 4
    assert relative_difference(together, draw_one_by_one(made).latents) < 1e-5


def test_prompts_of_one_length_need_no_mask(bench_of: Any, checkpoint: Any) -> None:
    masks = []
    for prompts in (("a cat", "a circle"), PROMPTS):
        made = bench_of(checkpoint(), prompts, steps=1)
        made.policy.modules["transformer"].register_forward_hook(
            lambda module, args, given, output: masks.append(given["encoder_attention_mask"]), with_kwargs=True
        )
        made.draw(2)
    assert masks[0] is None
    assert masks[1] is not None


def test_encode_media_is_the_other_way_round_of_decode(options: Any, pipeline_of: Any, checkpoint: Any) -> None:
    _, latents = check_encode_media(options(checkpoint()), pipeline=pipeline_of(checkpoint()))
    assert relative_difference(latents[:1], latents[1:]) > 1e-2, "two pictures give the same"
