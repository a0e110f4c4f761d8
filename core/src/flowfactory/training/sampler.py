"""Drawing a batch: conditions, plan and the model's ``sample``, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.data import condition_checks
from flowfactory.data.batches import Batch
from flowfactory.data.encode_cache import EncodeCache
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.errors import RunError, UserError
from flowfactory.hooks.calls import Hooks
from flowfactory.policy.policy import Policy
from flowfactory.types import Conditions, Prompt, Samples, SamplingPlan, Step, Trainable, Trajectory


class Sampler:
    """Draws what a plan says; what was drawn rests on the device, or in host memory where ``host`` says so.

    ``negative`` is the negative prompt of prompts that have none of their own. ``inspects``: whether what is drawn has numbers
    to be looked at, which fake tensors have not. ``merges``: whether adapters may be merged where nothing is recorded.
    """

    def __init__(
        self,
        hooks: Hooks,
        policy: Policy,
        cache: EncodeCache,
        trainable: Trainable,
        negative: str,
        host: bool = False,
        ranks: Ranks = ALONE,
        inspects: bool = True,
        merges: bool = True,
    ) -> None:
        self._hooks, self._policy, self._cache = hooks, policy, cache
        self._trainable, self._negative = trainable, negative
        self._rests_on = torch.device("cpu") if host else None
        self._ranks, self.inspects, self._merges = ranks, inspects, merges

    @property
    def frame_rate(self) -> float | None:
        """Frames a second of what the model draws; None for pictures."""
        return self._trainable.frame_rate

    def prepare(self, wanted: Iterable[tuple[Prompt, Canvas]]) -> int:
        """Have all that drawing each prompt on its canvas may need encoded; returns how many prompts had to be.

        The encoders are loaded once, or once a canvas where it matters, by the leading rank; the others find its work on the
        disk. Where machines share none the first rank of each does it again, and where it cannot be written to every rank.
        UserError, RunError: a prompt cannot be encoded, on whichever rank; or what came of it is not finite.
        """
        by_canvas: dict[Canvas, list[Prompt]] = {}
        for prompt, canvas in wanted:
            same = canvas if self._trainable.canvas_matters else next(iter(by_canvas), canvas)
            by_canvas.setdefault(same, []).extend([prompt, *([self._opposite(prompt)] if self._trainable.guided else [])])
        encoded = 0
        for mine in (self._ranks.leads, self._ranks.local == 0, True) if self._ranks.count > 1 else (True,):
            failure: Exception | None = None
            if mine:
                try:
                    encoded += sum(self._cache.prepare(prompts, canvas) for canvas, prompts in by_canvas.items())
                except (UserError, RunError) as error:
                    failure = error
            for told in self._ranks.gather(failure):  # the others would wait for what never comes
                if told is not None:
                    raise told
        return encoded

    def check_conditions(self, wanted: Sequence[tuple[Prompt, Canvas]]) -> None:
        """RunError: other prompts, of those ``wanted``, have no other conditions, or negative ones none of their own."""
        if not wanted:
            return
        canvas = wanted[0][1]
        alike = [prompt for prompt, other in wanted if other == canvas or not self._trainable.canvas_matters]
        compared = condition_checks.choose_compared(alike)

        def encoded(prompts: list[Prompt]) -> list[condition_checks.Encoded]:
            return list(zip(prompts, self._cache.entries(prompts, canvas), strict=True))

        condition_checks.check_different(encoded(compared))
        if self._trainable.guided:
            condition_checks.check_negatives(encoded(compared), encoded([self._opposite(prompt) for prompt in compared]))

    def conditions(self, prompts: Sequence[Prompt], guidance: float, canvas: Canvas) -> Conditions:
        """The conditions of ``prompts``, with the negative prompts' where ``guidance`` needs them. A joint work."""
        guided = self._trainable.guided and guidance > 1
        found = self._cache.conditions(prompts, canvas, [self._opposite(prompt) for prompt in prompts] if guided else None)
        if self._ranks.mesh is None:
            return found
        # told once, so that forwards, which take all ranks of a copy, need not ask each time who has what
        return replace(found, shapes=frozenset().union(*self._ranks.gather(found.own_shapes())))

    def _opposite(self, prompt: Prompt) -> Prompt:
        text = self._negative if prompt.negative is None else prompt.negative
        if self._trainable.negative_media:
            return replace(prompt, text=text, index=0, metadata={}, negative=None, is_negative=True)
        return Prompt(text, is_negative=True)

    def draw(self, conditions: Conditions, plan: SamplingPlan, batch_size: int) -> Trajectory:
        """The trajectory of all samples of ``plan``, drawn at most ``batch_size`` at once, with the weights it names."""
        pieces = []
        if self._merges:
            plan = replace(plan, unrecorded=self._policy.merged)
        with self._policy.sampling_weights(plan.weights):
            for start in range(0, len(plan.keys), batch_size):
                index = range(start, min(start + batch_size, len(plan.keys)))
                piece = self._hooks.sample(conditions.rows(index), plan.rows(index))
                piece = piece.clamp()
                pieces.append(piece if self._rests_on is None else piece.to(self._rests_on))
        return concatenate(pieces, conditions)


def concatenate(pieces: Sequence[Trajectory], conditions: Conditions) -> Trajectory:
    """The pieces as one trajectory, in order; ``conditions`` are those of all."""
    if len(pieces) == 1:
        return pieces[0]
    steps = [Step.concatenate(same, conditions) for same in zip(*(piece.steps for piece in pieces), strict=True)]
    return Trajectory(
        torch.cat([piece.media for piece in pieces]),
        torch.cat([piece.latents for piece in pieces]),
        pieces[0].sigmas,
        tuple(steps),
        torch.cat([piece.overshoot for piece in pieces if piece.overshoot is not None]),
    )


def to_samples(media: Tensor, batch: Batch, frame_rate: float | None = None) -> Samples:
    """What the rewards see of a drawn batch."""
    metadata = tuple(prompt.metadata for prompt in batch.prompts)
    return Samples(media, batch.texts, batch.groups, metadata, batch.prompts, frame_rate)
