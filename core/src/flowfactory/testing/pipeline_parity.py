"""A model beside the diffusers pipeline that it is made over: both draw from the same noise."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowfactory import flow
from flowfactory.canvas import Canvas
from flowfactory.config.component import ModelConfig
from flowfactory.data.pictures import read_picture
from flowfactory.errors import UserError
from flowfactory.flow.dynamics import ODE
from flowfactory.models.family import Parts
from flowfactory.models.family_config import FamilyConfig
from flowfactory.testing.model_bench import Bench, bench
from flowfactory.types import Prompt, Trajectory

NEARLY_ONE = 1 - 1e-5
"""Where UniPC begins, for the sake of its logarithms."""


class Drawn(NamedTuple):
    """What a pipeline drew: media as ``output_type="pt"`` gives them, its schedule, and what its scheduler was given.

    points: latents [B, ...] before each step and after the last, in the model's own layout. velocities: of each step.
    """

    media: Tensor
    sigmas: Tensor
    points: tuple[Tensor, ...]
    velocities: tuple[Tensor, ...]

    @property
    def latents(self) -> Tensor:
        """[B, ...] after the last step."""
        return self.points[-1]


def pack_nothing(pipeline: Any, noise: Tensor) -> Tensor:
    """Noise [B, ...] as most pipelines take it: as it is."""
    return noise


def unpack_nothing(pipeline: Any, latents: Tensor, canvas: Canvas) -> Tensor:
    """Latents [B, ...] as most pipelines have them: as they are."""
    return latents


def check_against_pipeline(
    config: ModelConfig,
    prompts: Sequence[str | Prompt] = ("a photo of a red circle", "cat"),
    size: tuple[int, ...] = (32, 32),
    guidance: float = 1.0,
    steps: int = 4,
    tolerance: float = 1e-4,
    negative: str = "",
    pipeline: Any = None,
    pack: Callable[[Any, Tensor], Tensor] = pack_nothing,
    unpack: Callable[[Any, Tensor, Canvas], Tensor] = unpack_nothing,
    guidance_as: str = "guidance_scale",
    **call: Any,
) -> Trajectory:
    """What the model draws of ``prompts`` by the ODE, in float32 on the CPU, after it was found to be what diffusers draws.

    Both start from the same noise. AssertionError: sigmas, latents or media are further apart than ``tolerance``, relative to
    the largest element; or other prompts draw the same, so that nothing is known of the text. It names the first step at which
    they part.

    size: height, width and, for videos, frames. pipeline: the pipeline of diffusers; left out, it is opened from the ``path``
    of ``config``. A scheduler that takes other than Euler steps is stood in for by FlowMatchEulerDiscreteScheduler, along the
    sigmas of the checkpoint's own.
    pack: the noise as the pipeline takes it. unpack: its latents as the model has them. Left out, both are one.
    guidance_as: what the pipeline's call names the guidance. call: what else it is given, such as ``max_sequence_length``.
    """
    if pipeline is None:
        pipeline = _open(config)
    with tempfile.TemporaryDirectory() as folder:
        made = bench(config, Path(folder), prompts, size, steps, guidance, 1, ODE(), negative=negative)
        made = replace(made, plan=replace(made.plan, recorded=frozenset(range(steps))))
        ours = made.draw(len(made.plan.keys))
        _check_text_matters(made, ours, tolerance)
    theirs = draw_with_pipeline(pipeline, made, ours.latents.shape[1:], pack, unpack, guidance_as, **call)
    _compare(type(pipeline).__name__, ours, theirs, tolerance)
    return ours


def check_encode_media(
    config: FamilyConfig, size: tuple[int, ...] = (32, 48), tolerance: float = 1e-5, pipeline: Any = None
) -> tuple[Tensor, Tensor]:
    """Two media in [0, 1] and the latents [2, ...] that ``encode_media`` makes of them, found to be those that decode them.

    They have the shape that the family draws in, and ``decode`` gives the VAE's decoder what its encoder said: the mean of the
    posterior itself. AssertionError: the shapes are others, or the two are further apart than ``tolerance``, relative to the
    largest element. Which range of pixels the VAE takes is not known from this: compare the latents with a pipeline's.

    size, pipeline: as in :func:`check_against_pipeline`.
    """
    family, canvas = config.family, Canvas(*size)
    assert family.encode_media is not None, "the family has no encode_media, so that it learns from no records"
    parts = Parts(pipeline or _open(config), config, torch.device("cpu"))
    frames = () if len(size) == 2 else (canvas.frames,)
    media = torch.rand((2, *frames, 3, canvas.height, canvas.width), generator=flow.generator("media"))
    with torch.no_grad(), _vae_answers(parts.pipeline.vae) as answers:
        latents = family.encode_media(parts, media)
        decoded = family.decode(parts, latents)
    for told, found, wanted in (
        ("latents", latents.shape[1:], family.shape(parts, canvas)),
        ("what decode makes of the latents", decoded.shape[1:], media.shape[1:]),
    ):
        assert tuple(found) == tuple(wanted), f"encode_media: {told} have shape {list(found)}, and not {list(wanted)}"
    apart = relative_difference(answers["decode"], answers["encode"])
    told = f"decode gives the VAE other latents than encode_media got of it, by {apart:.1e} of the largest"
    assert apart <= tolerance, f"{told}: one has to undo the normalisation of the other, of the mean that is not sampled"
    return media, latents


@contextmanager
def _vae_answers(vae: Any) -> Iterator[dict[str, Tensor]]:
    """Within it, the mean of what ``vae`` last took latents to be, and the latents that it was last given to decode."""
    answers: dict[str, Tensor] = {}
    encode, decode = vae.encode, vae.decode

    @wraps(encode)
    def answer(*given: Any, **options: Any) -> Any:
        found = encode(*given, **options)
        answers["encode"] = found[0] if isinstance(found[0], Tensor) else found[0].mean
        return found

    @wraps(decode)
    def note(latents: Tensor, *given: Any, **options: Any) -> Any:
        answers["decode"] = latents
        return decode(latents, *given, **options)

    vae.encode, vae.decode = answer, note
    try:
        yield answers
    finally:
        del vae.encode, vae.decode


def draw_with_pipeline(
    pipeline: Any,
    made: Bench,
    shape: Sequence[int],
    pack: Callable[[Any, Tensor], Tensor] = pack_nothing,
    unpack: Callable[[Any, Tensor, Canvas], Tensor] = unpack_nothing,
    guidance_as: str = "guidance_scale",
    one_by_one: bool = False,
    **call: Any,
) -> Drawn:
    """What ``pipeline`` of diffusers draws of the plan of ``made``, by Euler steps from the plan's noise [B, *shape].

    Prompts that bring pictures are drawn one at a time, as pipelines take them, and all are with ``one_by_one``: for a pipeline
    whose padding of a prompt changes what it draws. The rest is as in :func:`check_against_pipeline`.
    """
    noise, prompts = flow.noise(made.plan, shape), made.batch.prompts
    alone = one_by_one or any(prompt.media for prompt in prompts)
    rows = [slice(i, i + 1) for i in range(len(prompts))] if alone else [slice(None)]
    pieces = []
    for row in rows:
        given = _arguments(pipeline, made, prompts[row], guidance_as)
        with _euler_steps(pipeline) as taken:
            media = pipeline(**{**given, "latents": pack(pipeline, noise[row]), **call})[0]
            sigmas = pipeline.scheduler.sigmas[-len(taken) - 1 :].float()
        points = [unpack(pipeline, at, made.plan.canvas) for at in (*(before for before, _, _ in taken), taken[-1][2])]
        pieces.append(Drawn(media, sigmas, tuple(points), tuple(unpack(pipeline, v, made.plan.canvas) for _, v, _ in taken)))
    return Drawn(
        torch.cat([piece.media for piece in pieces]),
        pieces[0].sigmas,
        tuple(torch.cat(same) for same in zip(*(piece.points for piece in pieces), strict=True)),
        tuple(torch.cat(same) for same in zip(*(piece.velocities for piece in pieces), strict=True)),
    )


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest element; NaN where either is not finite."""
    assert ours.shape == theirs.shape, f"{list(ours.shape)} and {list(theirs.shape)}"
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _open(config: ModelConfig) -> Any:
    """The pipeline of diffusers' own opening, in float32. UserError: ``config`` does not say where it is."""
    from diffusers import DiffusionPipeline

    if not isinstance(config, FamilyConfig):
        raise UserError(f"{type(config).__name__} is no FamilyConfig, whose path could be opened; give pipeline=")
    absent = {name: None for name, there in config.checkpoint.parts.items() if not there}
    pipeline = DiffusionPipeline.from_pretrained(config.path, variant=config.variant, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(torch.float32)


def _arguments(pipeline: Any, made: Bench, prompts: Sequence[Prompt], guidance_as: str) -> Mapping[str, Any]:
    """What the call of ``pipeline`` is given, as far as it takes it."""
    height, width, frames = made.plan.canvas
    given: dict[str, Any] = {
        "prompt": [prompt.text for prompt in prompts],
        "height": height,
        "width": width,
        "num_frames": frames,
        "num_inference_steps": made.plan.steps,
        guidance_as: made.plan.guidance,
        "output_type": "pt",
    }
    if made.conditions.negative is not None:
        given["negative_prompt"] = [made.negative if prompt.negative is None else prompt.negative for prompt in prompts]
    if pictures := [read_picture(path) for prompt in prompts for path in prompt.images]:
        given["image"] = pictures if len(pictures) > 1 else pictures[0]
    known = inspect.signature(pipeline.__call__).parameters
    return {name: value for name, value in given.items() if name in known}


Taken = list[tuple[Tensor, Tensor, Tensor]]


@contextmanager
def _euler_steps(pipeline: Any) -> Iterator[Taken]:
    """Within it ``pipeline`` takes Euler steps along its scheduler's sigmas: latents, velocity and next latents of each."""
    own, taken = pipeline.scheduler, Taken()
    scheduler = _euler_in_place_of(own)
    step = scheduler.step

    @wraps(step)
    def record(velocity: Tensor, timestep: Any, latents: Tensor, *given: Any, **options: Any) -> Any:
        found = step(velocity, timestep, latents, *given, **options)
        taken.append((latents, velocity, found[0]))
        return found

    scheduler.step = record
    pipeline.scheduler = scheduler
    try:
        yield taken
    finally:
        del scheduler.step
        pipeline.scheduler = own


def _euler_in_place_of(scheduler: Any) -> Any:
    """``scheduler`` itself where it takes Euler steps, else one that does, along its sigmas and with times not rounded."""
    from diffusers import FlowMatchEulerDiscreteScheduler as Euler

    if type(scheduler) is Euler:
        return scheduler
    made = Euler(scheduler.config.num_train_timesteps)

    @wraps(scheduler.set_timesteps)
    def set_timesteps(*given: Any, **options: Any) -> None:
        scheduler.set_timesteps(*given, **options)
        sigmas = torch.unique_consecutive(scheduler.sigmas.float())  # a scheduler of two stages has each twice
        sigmas = torch.where(sigmas > NEARLY_ONE, torch.ones_like(sigmas), sigmas)
        Euler.set_timesteps(made, sigmas=sigmas[:-1].tolist())

    made.set_timesteps = set_timesteps
    return made


def _check_text_matters(made: Bench, ours: Trajectory, tolerance: float) -> None:
    """AssertionError: prompts that differ draw the same of one noise."""
    different = list({(prompt.text, prompt.media): i for i, prompt in enumerate(made.batch.prompts)}.values())
    if len(different) < 2:
        return
    plan = replace(made.plan, keys=made.plan.keys[:1] * len(different))
    first, *others = made.sampler.draw(made.conditions.rows(different), plan, len(different)).latents
    apart = max(relative_difference(other, first) for other in others)
    told = (
        f"another prompt changes the latents by {apart:.1e} of the largest, within {tolerance:.0e}: so this proves nothing of"
    )
    assert not apart <= tolerance, f"{told} the text; give conditions to the transformer, or the checkpoint larger weights"


def _compare(name: str, ours: Trajectory, theirs: Drawn, tolerance: float) -> None:
    """AssertionError: one sentence about the first of sigmas, latents and media that is apart, and by how much."""
    sigmas = [[round(sigma, 4) for sigma in schedule.tolist()] for schedule in (ours.sigmas, theirs.sigmas)]
    same = ours.sigmas.shape == theirs.sigmas.shape and relative_difference(ours.sigmas, theirs.sigmas.cpu()) <= tolerance
    assert same, f"the sigmas are {sigmas[0]}, and those of {name} are {sigmas[1]}"
    shapes = list(ours.latents.shape), list(theirs.latents.shape)
    assert shapes[0] == shapes[1], f"the latents have shape {shapes[0]}, and those of {name} {shapes[1]}; give pack and unpack"
    points = (*(step.latents for step in ours.steps), ours.latents)
    for i, (mine, other) in enumerate(zip(points, theirs.points, strict=True)):
        apart = relative_difference(mine, other)
        assert apart <= tolerance, _part(name, i, apart, tolerance, _velocity(ours, points, i), theirs)
    shapes = list(ours.media.shape), list(theirs.media.shape)
    assert shapes[0] == shapes[1], f"the media have shape {shapes[0]}, and those of {name} {shapes[1]}"
    apart = relative_difference(ours.media, theirs.media)
    told = f"the media differ from those of {name} by {apart:.1e} of the largest value, more than {tolerance:.0e}"
    assert apart <= tolerance, f"{told}, though the latents agree: look at decode"


def _velocity(ours: Trajectory, points: Sequence[Tensor], i: int) -> Tensor:
    """Of the step that leads to point ``i``."""
    if i == 0:
        return points[0]
    (before, after), (sigma, next_sigma) = list(pairwise(points))[i - 1], list(pairwise(ours.sigmas.tolist()))[i - 1]
    found: Tensor = (after - before) / (next_sigma - sigma)
    return found


def _part(name: str, i: int, apart: float, tolerance: float, velocity: Tensor, theirs: Drawn) -> str:
    """What is said where latents part: how far, at which step, and whether the sign alone is wrong."""
    if i == 0:
        told = "look at start, and at pack and unpack"
        return f"the latents that it starts from differ from those of {name} by {apart:.1e} of the largest; {told}"
    count, right = len(theirs.velocities), theirs.velocities[i - 1]
    where = f"at step {i} of {count}, sigma {float(theirs.sigmas[i - 1]):.4g}"
    told = f"the latents part from those of {name} {where}, by {apart:.1e} of the largest, more than {tolerance:.0e}"
    if relative_difference(-velocity, right) <= 10 * tolerance:
        return f"{told}: the velocity has the opposite sign"
    off = relative_difference(velocity, right)
    return f"{told}: the velocity is off by {off:.1e} of its largest; look at velocity, its time and what it does with the text"
