"""What a model drew, looked at once where it comes from, before anything becomes 8 bits: its form, and that it is finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from flowfactory.canvas import Canvas
from flowfactory.distributed.ranks import Ranks
from flowfactory.errors import RunError, UserError
from flowfactory.flow import check_sigmas
from flowfactory.types import Index, Prompt, SamplingPlan, Trajectory

OVERSHOOT = 0.15
"""The most that media may lie outside [0, 1], see :func:`clamp_media`.

Decoders of random weights come to 0.04. The pictures that scikit-image ships come to 0.16, the palest, or more in [-1, 1], and
to 0.57 or more in 0..255.
"""


class Broken(NamedTuple):
    """A sample that is not finite: its place among all, whether its latents are not, and the step that first made them so."""

    sample: int
    latents: bool
    step: int | None = None


def check_form(drawn: Trajectory, plan: SamplingPlan) -> None:
    """UserError: the schedule is none, or there are not as many samples as ``plan`` asks for, or not of its canvas' size."""
    check_sigmas(drawn.sigmas, plan.steps)
    count = len(plan.keys)
    for what, tensor in (("latents", drawn.latents), ("media", drawn.media)):
        if len(tensor) != count:
            raise UserError(f"model: it drew {what} {list(tensor.shape)} for {count} samples; return [{count}, ...]")
    if drawn.media.dim() not in (4, 5):
        raise UserError(f"model: it drew media {list(drawn.media.shape)}; return [B, C, H, W], or [B, F, C, H, W]")
    height, width = drawn.media.shape[-2:]
    found = Canvas(height, width, drawn.media.shape[1] if drawn.media.dim() == 5 else 1)
    if found != plan.canvas:
        raise UserError(
            f"model: it drew {_describe(found)} on a canvas of {_describe(plan.canvas)}; have the shape of its latents, and "
            "what its decoder makes of them, follow plan.canvas"
        )


def _describe(canvas: Canvas) -> str:
    pixels = f"{canvas.height} x {canvas.width} pixels"
    return pixels if canvas.frames == 1 else f"{canvas.frames} frames of {pixels}"


def find_broken(drawn: Trajectory) -> list[tuple[int, bool]]:
    """The samples whose media or latents are not finite, and whether the latents are not. Waits for the device once."""
    assert drawn.overshoot is not None
    latents, media = drawn.latents.isfinite().flatten(1).all(1), drawn.overshoot.isfinite()
    sound = torch.stack([latents, media.to(latents.device)], 1)  # they may have been decoded on the host
    return [(row, not whole) for row, (whole, shown) in enumerate(sound.tolist()) if not (whole and shown)]


def check_finite(
    drawn: Trajectory,
    plan: SamplingPlan,
    prompts: Sequence[Prompt],
    mine: Index,
    batch_size: int,
    redraw: Callable[[Index, SamplingPlan], Trajectory],
    ranks: Ranks,
) -> None:
    """RunError, the same on every rank: a sample of some rank is not finite; says of which prompt, and from which step on.

    ``drawn`` are the samples ``mine`` of ``plan`` and ``prompts``. ``redraw`` draws of them those given, by another plan: to
    find the step, which nothing else needs, all ranks draw the pieces of ``batch_size`` again in which it happened.
    """
    broken = find_broken(drawn)
    everywhere = ranks.gather(broken)
    if not any(everywhere):
        return
    piece = min(rows[0][0] for rows in everywhere if rows) // batch_size
    index = range(piece * batch_size, min((piece + 1) * batch_size, len(mine)))
    wanted = plan.rows([mine[row] for row in index])
    again = redraw(index, replace(wanted, recorded=frozenset(range(plan.steps))))
    found = [
        Broken(mine[row], latents, _first_step(again, row - index.start, plan.steps) if row in index and latents else None)
        for row, latents in broken
    ]
    gathered = [one for rank in ranks.gather(found) for one in rank]
    first = min(gathered, key=lambda one: (one.latents and one.step is None, one.sample))
    raise RunError(_explain(first, drawn, plan, prompts[first.sample], len({one.sample for one in gathered})))


def _first_step(drawn: Trajectory, row: int, steps: int) -> int | None:
    """The step, counted from 0, after which the latents are not finite; -1 before any; None where it is not to be seen."""
    if len(drawn.steps) != steps or bool(drawn.latents[row].isfinite().all()):
        return None  # the model does not record, or the second time all went well
    sound = [bool(step.latents[row].isfinite().all()) for step in drawn.steps]
    return (sound.index(False) if False in sound else steps) - 1


def _explain(broken: Broken, drawn: Trajectory, plan: SamplingPlan, prompt: Prompt, count: int) -> str:
    others = f" and {count - 1} more of {len(plan.keys)} samples" if count > 1 else ""
    for_whom = f"for the prompt {prompt.text[:60]!r}{others}"
    if not broken.latents:
        told = f"media that are not finite {for_whom}, of latents that are"
        return f"the model drew {told}; look at its decoder: the weights of the VAE, and its dtype"
    told = f"latents that are not finite {for_whom}"
    if broken.step == -1:
        return f"the model drew {told}, from before the first step on; look at what it starts from"
    if broken.step is not None:
        now, then = drawn.sigmas[broken.step : broken.step + 2].tolist()
        told += f", from step {broken.step + 1} of {plan.steps} on (sigma {now:.3g} to {then:.3g})"
    return f"the model drew {told}; look at its transformer: the weights, and the dtype that training.precision gives them"


def clamp_media(drawn: Trajectory) -> Trajectory:
    """The trajectory with its media clamped to [0, 1], and in ``overshoot`` how far each sample's were outside.

    That is their mean distance from [0, 1], but for the 0.03 that a decoder may miss a white ground by, in units of their
    contrast, which is their standard deviation and a twentieth more, so that a sample of one colour has some. It is not
    finite where the media are not.
    """
    media = drawn.media if drawn.media.is_floating_point() else drawn.media.float()
    inside = media.clamp(0, 1)  # makes an infinity of a pixel, and leaves a NaN
    # one by one: videos of all samples take much of the memory
    pairs = zip(media, inside, strict=True)
    outside = torch.stack([(one - other).abs_().mean(dtype=torch.float32) for one, other in pairs])
    contrast = media.flatten(1).float().std(1, correction=0) + 0.05
    return replace(drawn, media=inside, overshoot=(outside - 0.03).clamp_min(0) / contrast)


def check_range(overshoot: Sequence[float]) -> None:
    """RunError: media as they were decoded have another range than [0, 1]; ``overshoot`` is that of :func:`clamp_media`."""
    mean = sum(overshoot) / max(1, len(overshoot))
    if mean > OVERSHOOT:
        raise RunError(
            f"the model's media lie outside [0, 1] by {mean:.2f} of their contrast, and {OVERSHOOT} is the most that a decoder "
            "overshoots; draw in more steps or under less guidance, and where that is not it, have the model return [0, 1], "
            "not [-1, 1] or 0 to 255"
        )
