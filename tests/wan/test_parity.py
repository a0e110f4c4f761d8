"""The plugin draws what diffusers' own Wan pipelines draw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanVideoToVideoPipeline
from families import draw_one_by_one, relative_difference
from torch import Tensor
from wan_pipelines import CONFIGS, EVERY, LATENTS, SIZES, draw_reference, schedule

from flowfactory import Canvas
from flowfactory.testing import check_against_pipeline, check_encode_media
from flowfactory_wan.wan_t2v import WanT2VConfig

EXACT = 1e-5
SMALL = (32, 32, 5)


def against(prompts: Any, negative: str) -> list[Any]:
    return [replace(prompt, negative=negative) for prompt in prompts]


@pytest.mark.parametrize(("task", "kind"), EVERY)
def test_ode_latents_and_videos_are_the_pipelines(model: Any, pipeline: Any, prompts: Any, task: str, kind: str) -> None:
    height, width, frames = SIZES[kind]
    whole = {"num_inference_steps": 5} if task == "v2v" else {}  # of which strength 0.8 leaves the 4 that are asked of us
    told = against(prompts(task)[:2], "blurry square")
    found = []
    for guidance in (1.0, 4.5):
        made = model(task, kind, told, SIZES[kind], 4, guidance)
        ours = made.draw(2)
        assert ours.media.shape == (2, frames, 3, height, width)
        assert relative_difference(ours.latents, draw_reference(pipeline(task, kind), made, **whole)) < EXACT
        found.append(ours)
    plain, guided = found
    assert relative_difference(guided.media, draw_reference(pipeline(task, kind), made, "pt", **whole)) < EXACT
    assert relative_difference(guided.latents, plain.latents) > 1e-3, "guidance changes nothing"
    assert relative_difference(guided.media, plain.media) > 1e-3, "the decoder makes nothing of it"
    assert relative_difference(plain.latents[:1], plain.latents[1:]) > 1e-3, "two prompts and their noise give the same"


@pytest.mark.parametrize(
    ("task", "kind", "guidance"), [*((*pair, 4.5) for pair in EVERY), ("t2v", "a14b", 1.0), ("i2v", "2.1", 1.0)]
)
def test_a_batch_is_its_samples_drawn_one_by_one(model: Any, prompts: Any, task: str, kind: str, guidance: float) -> None:
    made = model(task, kind, prompts(task), SIZES[kind], 2, guidance)
    together, alone = made.draw(3), draw_one_by_one(made)
    assert relative_difference(together.latents, alone.latents) < EXACT
    assert relative_difference(together.media, alone.media) < EXACT


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_any_number_of_steps_is_the_pipelines(model: Any, pipeline: Any, prompts: Any, steps: int) -> None:
    made = model("t2v", "2.1", prompts("t2v")[:1], SMALL, steps)
    assert relative_difference(made.draw(1).latents, draw_reference(pipeline("t2v"), made)) < EXACT


@pytest.mark.parametrize("size", [(48, 16, 1), (16, 64, 9)])
@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_any_size_and_number_of_frames_is_the_pipelines(
    model: Any, pipeline: Any, prompts: Any, task: str, size: tuple[int, int, int]
) -> None:
    made = model(task, "2.1", prompts(task)[:1], size, 2)
    ours = made.draw(1)
    assert ours.media.shape == (1, size[2], 3, *size[:2])
    assert relative_difference(ours.latents, draw_reference(pipeline(task), made)) < EXACT
    assert relative_difference(ours.media, draw_reference(pipeline(task), made, "pt")) < EXACT


@pytest.mark.parametrize("size", [(48, 16, 9), (16, 64, 13)])
@pytest.mark.parametrize("kind", ["2.1", "a14b"])
def test_any_size_and_number_of_frames_between_two_is_the_pipelines(
    model: Any, pipeline: Any, prompts: Any, kind: str, size: tuple[int, int, int]
) -> None:
    made = model("flf2v", kind, prompts("flf2v")[:1], size, 2)
    assert relative_difference(made.draw(1).latents, draw_reference(pipeline("flf2v", kind), made)) < EXACT


@pytest.mark.parametrize("kind", ["2.1", "a14b"])
def test_first_and_last_frame_are_told_apart(model: Any, prompts: Any, kind: str) -> None:
    (told, *_) = prompts("flf2v")
    turned = replace(told, images=told.images[::-1])
    one, other = (model("flf2v", kind, [prompt], SIZES[kind], 2).draw(1).latents for prompt in (told, turned))
    assert relative_difference(other, one) > 1e-3


@pytest.mark.parametrize(("task", "kind"), [("t2v", "2.1"), ("i2v", "2.1"), ("i2v", "5b"), ("v2v", "2.1")])
def test_the_text_and_the_negative_prompt_change_what_is_drawn(model: Any, prompts: Any, task: str, kind: str) -> None:
    told = prompts(task)[0]
    asked = (told, replace(told, text="green square"), replace(told, negative="blurry circle"))
    plain, other, negative = (model(task, kind, [p], SIZES[kind], 2, 4.0).draw(1).latents for p in asked)
    assert relative_difference(other, plain) > 1e-4
    assert relative_difference(negative, plain) > 1e-4


def test_guidance_below_one_is_off_as_in_the_pipeline(model: Any, pipeline: Any, prompts: Any) -> None:
    made = model("t2v", "2.1", prompts("t2v")[:1], SMALL, 3, 0.5)
    assert relative_difference(made.draw(1).latents, draw_reference(pipeline("t2v"), made)) < EXACT


@pytest.mark.parametrize(("task", "kind"), [pair for pair in EVERY if pair[0] != "t2v"])
def test_the_picture_or_video_changes_what_is_drawn(model: Any, prompts: Any, task: str, kind: str) -> None:
    first, _, third = prompts(task)
    swapped = replace(first, images=third.images, video=third.video)
    one, other = (model(task, kind, [prompt], SIZES[kind], 2, 1.0).draw(1).latents for prompt in (first, swapped))
    assert relative_difference(other[:, :, 1:], one[:, :, 1:]) > 1e-3


@pytest.mark.parametrize("shift", [3.0, 5.0])
@pytest.mark.parametrize("steps", [2, 9])
def test_the_schedule_is_unipcs_but_starts_at_one(model: Any, prompts: Any, steps: int, shift: float) -> None:
    kind = {3.0: "2.1", 5.0: "5b"}[shift]
    sigmas = model("t2v", kind, prompts("t2v")[:1], SIZES[kind], steps).draw(1).sigmas
    theirs = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction")
    theirs.set_timesteps(steps)
    assert sigmas[0] == 1
    assert torch.equal(sigmas[1:], theirs.sigmas[1:])
    assert 0 < 1 - float(theirs.sigmas[0]) < 2e-6
    torch.testing.assert_close(sigmas, torch.tensor(schedule(steps, shift), dtype=torch.float32), rtol=1e-6, atol=0)
    assert (theirs.timesteps - sigmas[:-1] * 1000).abs().max() <= 1  # which UniPC rounds down


class Seen:
    """The timesteps that each transformer is run at."""

    def __init__(self, made: Any) -> None:
        self.at: dict[str, list[float]] = {}
        for name, module in made.policy.modules.items():
            self.at[name] = []
            module.register_forward_pre_hook(self._note(name), with_kwargs=True)

    def _note(self, name: str) -> Any:
        return lambda module, args, kwargs: self.at[name].extend(kwargs["timestep"].tolist())


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_each_expert_sees_the_steps_on_its_side(model: Any, prompts: Any, task: str) -> None:
    made = model(task, "a14b", prompts(task)[:1], SMALL, 4, 3.0, decode_batch_size=1)  # opened for these hooks alone
    seen = Seen(made).at
    sigmas = made.draw(1).sigmas
    times = (sigmas[:-1] * 1000).tolist()
    twice = [time for time in times for _ in range(2)]  # with guidance
    assert seen == {"transformer": [t for t in twice if t >= 875], "transformer_2": [t for t in twice if t < 875]}
    assert all(len(steps) >= 4 for steps in seen.values())


@pytest.mark.parametrize(
    ("task", "guidance", "low"),
    [("t2v", 4.0, None), ("t2v", 4.0, 2.0), ("t2v", 1.0, 3.0), ("i2v", 4.0, 1.0)],
)
def test_the_low_noise_experts_guidance_is_the_pipelines(
    model: Any, pipeline: Any, prompts: Any, task: str, guidance: float, low: float | None
) -> None:
    made = model(task, "a14b", prompts(task)[:1], SMALL, 4, guidance, guidance_2=low)
    ours = made.draw(1).latents
    assert relative_difference(ours, draw_reference(pipeline(task, "a14b"), made, guidance_scale_2=low)) < EXACT
    same = model(task, "a14b", prompts(task)[:1], SMALL, 4, guidance).draw(1).latents
    assert (relative_difference(ours, same) > 1e-4) == (low is not None and guidance > 1)


@pytest.mark.parametrize(("strength", "steps", "whole"), [(1.0, 3, 3), (0.5, 2, 4), (0.3, 2, 7), (0.7, 7, 10), (0.07, 1, 15)])
def test_a_video_starts_where_strength_says_as_in_the_pipeline(
    model: Any, pipeline: Any, prompts: Any, strength: float, steps: int, whole: int
) -> None:
    made = model("v2v", "2.1", prompts("v2v")[:1], SMALL, steps, strength=strength)
    ours = made.draw(1)
    expected = torch.tensor(schedule(whole, 3.0)[-steps - 1 :], dtype=torch.float32)
    torch.testing.assert_close(ours.sigmas, expected, rtol=1e-6, atol=0)
    theirs = draw_reference(pipeline("v2v"), made, num_inference_steps=whole, strength=strength)
    assert pipeline("v2v").num_timesteps == steps
    assert relative_difference(ours.latents, theirs) < EXACT


@pytest.mark.parametrize("task", ["i2v", "v2v"])
def test_a_checkpoint_that_calls_itself_a_wan_pipeline_is_read_as_the_pipeline_reads_it(
    model: Any, pipeline: Any, prompts: Any, checkpoint: Any, task: str
) -> None:
    kind = "5b" if task == "i2v" else "2.1"
    folder = checkpoint("t2v", kind)  # as the 5B and Wan 2.1 are released
    made = model(task, kind, prompts(task)[:1], SIZES[kind], 4, 3.0, path=folder)
    whole = {"num_inference_steps": 5} if task == "v2v" else {}
    assert relative_difference(made.draw(1).latents, draw_reference(pipeline(task, kind, folder), made, **whole)) < EXACT


def test_the_given_frame_is_reached_exactly_and_its_velocity_is_the_flow_to_it(model: Any, prompts: Any) -> None:
    made = model("i2v", "5b", prompts("i2v")[:2], SIZES["5b"], 3, 4.0)
    given = made.conditions.stack("condition")
    assert given.shape == (2, 6, 1, 4, 6)
    latents = made.draw(2).latents
    assert relative_difference(latents[:, :, :1], given) < 1e-5
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.9, 0.3])
    mixed = torch.lerp(latents, noise, sigma[:, None, None, None, None])
    velocity = velocity_of(made, mixed, sigma)
    assert relative_difference(velocity[:, :, :1], (noise - given)[:, :, :1]) < 1e-5
    moved = mixed.clone()
    moved[:, :, :1] += 1
    assert torch.equal(velocity_of(made, moved, sigma)[:, :, 1:], velocity[:, :, 1:]), "its noise reaches the others"


def velocity_of(made: Any, latents: Tensor, sigma: Tensor) -> Tensor:
    from flowfactory import Step
    from flowfactory.flow.dynamics import ODE

    with torch.no_grad():
        found: Tensor = made.policy.evaluate(Step(latents, sigma, made.conditions, 1.0, ODE())).velocity
    return found


def test_a_batch_on_both_sides_of_the_boundary_is_its_samples_one_by_one(model: Any, prompts: Any) -> None:
    made = model("t2v", "a14b", prompts("t2v"), SMALL, 3, 4.0, guidance_2=2.0)
    latents = torch.randn((3, 4, 2, 4, 4), generator=torch.Generator().manual_seed(2))
    sigma = torch.tensor([0.3, 0.95, 0.875])
    together = velocity_of(made, latents, sigma)
    for row in range(3):
        alone = replace(made, conditions=made.conditions.rows([row]))
        found = velocity_of(alone, latents[row : row + 1], sigma[row : row + 1])
        assert relative_difference(together[row : row + 1], found) < EXACT


def test_the_boundary_itself_is_the_high_noise_experts(model: Any, prompts: Any) -> None:
    made = model("t2v", "a14b", prompts("t2v")[:2], SMALL, 2, decode_batch_size=2)  # opened for these hooks alone
    seen = Seen(made).at
    velocity_of(made, torch.zeros(2, 4, 2, 4, 4), torch.tensor([0.875, 0.8749]))
    assert seen["transformer"] == [875]
    assert seen["transformer_2"] == pytest.approx([874.9])


def test_the_canvas_of_a_plan_decides_the_shape_of_the_latents(model: Any, prompts: Any) -> None:
    made = model("t2v", "5b", prompts("t2v")[:1], (96, 32, 13), 1)
    assert made.plan.canvas == Canvas(96, 32, 13)
    assert made.draw(1).latents.shape == (1, 6, 4, 6, 2)


def test_authors_check_finds_the_same_with_the_schedulers_own_sigmas(checkpoint: Any) -> None:
    config = WanT2VConfig.model_validate({"path": str(checkpoint("t2v", "2.1")), "train": "full"})
    ours = check_against_pipeline(config, ("cat", "a photo of a red circle"), SMALL, guidance=4.5, steps=2)
    assert ours.media.shape == (2, 5, 3, 32, 32)


@pytest.mark.parametrize(("task", "kind"), EVERY)
def test_latents_of_videos_are_those_that_the_video_to_video_pipeline_starts_from(
    checkpoint: Any, pipeline: Any, task: str, kind: str
) -> None:
    theirs = pipeline(task, kind)
    config = CONFIGS[task].model_validate({"path": str(checkpoint(task, kind)), "train": "full"})
    videos, latents = check_encode_media(config, SIZES[kind], pipeline=theirs)
    assert videos.shape[1:3] == (5, 3)
    height, width, _ = SIZES[kind]
    pixels = theirs.video_processor.normalize(videos.transpose(1, 2))
    with torch.no_grad(), patch.object(theirs.scheduler, "scale_noise", lambda latents, timestep, noise: latents):
        clean = WanVideoToVideoPipeline.prepare_latents(
            theirs, pixels, 2, LATENTS[kind][0], height, width, torch.float32, torch.device("cpu")
        )
    assert relative_difference(latents, clean) < EXACT
    assert relative_difference(latents[:1], latents[1:]) > 1e-2, "two videos give the same"


@pytest.mark.parametrize("kind", ["2.1", "5b"])
def test_a_single_frame_is_the_first_of_the_latents_of_a_video(checkpoint: Any, pipeline: Any, kind: str) -> None:
    config = CONFIGS["t2v"].model_validate({"path": str(checkpoint("t2v", kind)), "train": "full"})
    height, width, _ = SIZES[kind]
    _, latents = check_encode_media(config, (height, width, 1), pipeline=pipeline("t2v", kind))
    assert latents.shape[2] == 1
