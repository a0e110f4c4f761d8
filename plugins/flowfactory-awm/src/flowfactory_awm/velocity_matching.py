"""What RAM and RVM share: the pretraining loss weighed by the advantage, and a pull to another velocity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from flowfactory import At, Experience, Loss, Policy, hookimpl
from flowfactory.flow import NoisedBatch, Timesteps, noised_micro_batches
from flowfactory.policy import REFERENCE, Comparison, keep_kl_reference, kl_reference
from flowfactory.rl import NORM_GUARD, add_kl, guard_norm, squared_error, velocity_kl

if TYPE_CHECKING:
    from flowfactory.policy import Decay
    from flowfactory.rl import AdaptiveKL, KLTerm


ANCHOR = "anchor"


class Anchor(NamedTuple):
    """The weights whose velocity is pulled to, and how much: an average that moves as ``decay`` says, else the reference."""

    weight: float | AdaptiveKL | KLTerm
    decay: Decay | None = None


class VelocityMatching:
    """One loss a sample and training time. There is no ratio, so no weights are kept but those of the anchor.

    At the weights that an iteration began with, its gradient is AWM's of the uniform weighting times ``scale``.
    """

    def __init__(self, timesteps: Timesteps, scale: float, anchor: Anchor, norm_guard: float) -> None:
        self._timesteps, self._scale, self._anchor, self._norm_guard = timesteps, scale, anchor, norm_guard
        at = At(kl_reference(anchor.weight) if anchor.decay is None else ANCHOR)
        self._kept = ({ANCHOR: at} if anchor.weight else {}) | ({NORM_GUARD: At(REFERENCE)} if norm_guard else {})

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        """Keep what is pulled to, and whose size is kept to, if anything is."""
        if self._norm_guard:
            policy.keep_reference()
        if not self._anchor.weight:
            return
        if self._anchor.decay is None:
            keep_kl_reference(policy, self._anchor.weight)
        else:
            policy.track_ema(ANCHOR, self._anchor.decay)

    @hookimpl
    def comparisons(self, experience: Experience) -> Iterator[Comparison]:
        """What is compared at each place."""
        for at in noised_micro_batches(experience, self._timesteps):
            yield at.step, self._kept

    @hookimpl
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """scale A |v - (noise - x0)|² + weight |v - v_anchor|² at each place."""
        for at in noised_micro_batches(experience, self._timesteps):
            yield self.loss(at, policy)

    def loss(self, at: NoisedBatch, policy: Policy) -> Loss:
        """The losses of the rows of ``at``."""
        new, kept = policy.compare(at.step, self._kept)
        error = squared_error(new.velocity, at.target)
        loss = Loss(self._scale * at.samples.advantages * error, metrics={"matching_error": error})
        if self._anchor.weight:
            loss = add_kl(loss, self._anchor.weight, at.samples, velocity_kl(new.velocity, kept[ANCHOR].velocity))
        if self._norm_guard:
            loss = guard_norm(loss, self._norm_guard, new.velocity, kept[NORM_GUARD].velocity)
        return loss
