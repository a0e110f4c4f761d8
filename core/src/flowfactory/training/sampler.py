"""Drawing a batch: conditions, plan and the model's ``sample``, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.data import condition_checks
from flowfactory.data.batches import Batch
from flowfactory.data.encode_cache import EncodeCache, Wanted
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.hooks.calls import Hooks
from flowfactory.policy.policy import Policy
from flowfactory.training.inspection import clamp_media
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

    @property
    def guided(self) -> bool:
        """Whether guidance above 1 leads away from a negative prompt, rather than being a number that the model is given."""
        return self._trainable.guided

    def schedule(self, steps: int, canvas: Canvas) -> Tensor:
        """The sigmas [steps + 1] that the model draws so many steps with; even ones where it does not tell."""
        told = self._trainable.sigmas
        return torch.linspace(1, 0, steps + 1) if told is None else told(steps, canvas)

    def prepare(self, wanted: Wanted, in_training: bool = False) -> int:
        """Have all that drawing the prompts, each on its canvas, may need encoded; returns how many prompts had to be.

        The encoders are loaded once, or once a canvas where it matters, by each rank that encodes a part; nothing is held that
        the disk takes. ``in_training``: the weights are in place. UserError, RunError: a prompt cannot be encoded, on whichever
        rank; or what came of it is not finite.
        """
        both = [(self._with_opposites(prompts), canvas) for prompts, canvas in self._by_canvas(wanted)]
        return self._cache.prepare_all(both, in_training)

    def _by_canvas(self, wanted: Wanted) -> Wanted:
        """The prompts ``wanted`` together where they are encoded alike, which all are on the first canvas if none matters."""
        found: dict[Canvas, list[Prompt]] = {}
        for prompts, canvas in wanted:
            if prompts:
                same = canvas if self._trainable.canvas_matters else next(iter(found), canvas)
                found.setdefault(same, []).extend(prompts)
        return [(prompts, canvas) for canvas, prompts in found.items()]

    def _with_opposites(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        """Each of ``prompts`` with its negative prompt behind it, if there is one; of texts alone each once."""
        if not self._trainable.guided:
            return prompts
        found, texts = [], set()
        for prompt in prompts:
            found.append(prompt)
            opposite = self._opposite(prompt)
            if self._trainable.negative_media or opposite.text not in texts:
                texts.add(opposite.text)
                found.append(opposite)
        return found

    def check_conditions(self, wanted: Wanted) -> None:
        """RunError: other prompts, of those ``wanted``, have no other conditions, or negative ones none of their own."""
        together = self._by_canvas(wanted)
        if not together:
            return
        alike, canvas = together[0]
        compared = condition_checks.choose_compared(alike)

        def encoded(prompts: list[Prompt]) -> list[condition_checks.Encoded]:
            return list(zip(prompts, self._cache.entries(prompts, canvas), strict=True))

        condition_checks.check_different(encoded(compared))
        if self._trainable.guided:
            condition_checks.check_negatives(encoded(compared), encoded([self._opposite(prompt) for prompt in compared]))

    def conditions(self, prompts: Sequence[Prompt], guidance: float, canvas: Canvas) -> Conditions:
        """The conditions of ``prompts``, with the negative prompts' where ``guidance`` needs them.

        A joint work of the ranks.
        """
        found = self._cache.conditions(prompts, canvas, self._negatives(prompts, guidance))
        if self._ranks.mesh is None:
            return found
        # told once, so that forwards, which take all ranks of a copy, need not ask each time who has what
        return replace(found, shapes=frozenset().union(*self._ranks.gather(found.own_shapes())))

    def read_ahead(self, prompts: Sequence[Prompt], guidance: float, canvas: Canvas) -> None:
        """Begin to read from the disk what :meth:`conditions` will be asked for."""
        self._cache.read_ahead(prompts, canvas, self._negatives(prompts, guidance))

    def _negatives(self, prompts: Sequence[Prompt], guidance: float) -> list[Prompt] | None:
        guided = self._trainable.guided and guidance > 1
        return [self._opposite(prompt) for prompt in prompts] if guided else None

    def _opposite(self, prompt: Prompt) -> Prompt:
        text = self._negative if prompt.negative is None else prompt.negative
        if self._trainable.negative_media:
            return replace(prompt, text=text, index=0, metadata={}, negative=None, is_negative=True)
        return Prompt(text, is_negative=True)

    def draw(
        self, conditions: Conditions, plan: SamplingPlan, batch_size: int, drawn: Callable[[int], None] | None = None
    ) -> Trajectory:
        """The trajectory of all samples of ``plan``, drawn at most ``batch_size`` at once, with the weights it names.

        ``drawn`` hears how many more are, after each forward's worth.
        """
        pieces = []
        if self._merges:
            plan = replace(plan, unrecorded=self._policy.merged)
        with self._policy.sampling_weights(plan.weights, plan.weights_as):
            for start in range(0, len(plan.keys), batch_size):
                index = range(start, min(start + batch_size, len(plan.keys)))
                piece = self._hooks.sample(conditions.rows(index), plan.rows(index))
                piece = clamp_media(piece)
                pieces.append(piece if self._rests_on is None else piece.to(self._rests_on))
                if drawn is not None:
                    drawn(len(index))
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
