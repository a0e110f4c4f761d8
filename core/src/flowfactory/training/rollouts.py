"""The samples of an iteration on whichever rank they were drawn, and redistributed to learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from flowfactory.data.batches import Batch
from flowfactory.distributed.exchange import Holders
from flowfactory.distributed.partition import Rows, assign_rounds, split_with_padding
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.experience import Experience
from flowfactory.training import inspection
from flowfactory.training.sampler import Sampler
from flowfactory.types import Conditions, Index, SamplingPlan, Step, Trajectory, take


@dataclass(frozen=True)
class RankRollout:
    """The trajectory of this rank's samples, and which of all samples each rank has."""

    trajectory: Trajectory
    held: Rows


def roll_out(
    sampler: Sampler,
    batch: Batch,
    conditions: Conditions,
    plan: SamplingPlan,
    batch_size: int,
    ranks: Ranks,
    told: Callable[[int], None] | None = None,
) -> RankRollout:
    """All samples of ``batch``, each rank its part and as many as the others, at most ``batch_size`` at once.

    ``told`` hears how many more this rank has drawn, each time that some are.
    UserError: what was drawn is not of the form that ``plan`` asks for. RunError: it is not finite on some rank. A joint
    work of the ranks.
    """
    held = split_with_padding(range(len(plan.keys)), ranks.workers.count)
    mine = held[ranks.workers.rank]
    own = conditions.rows(mine)
    drawn = sampler.draw(own, plan.rows(mine), batch_size, told)
    if sampler.inspects:
        inspection.check_form(drawn, plan.rows(mine))

        def redraw(index: Index, other: SamplingPlan) -> Trajectory:
            return sampler.draw(own.rows(index), other, batch_size)

        inspection.check_finite(drawn, plan, batch.prompts, mine, batch_size, redraw, ranks)
    return RankRollout(drawn, held)


@dataclass(frozen=True)
class Rollouts:
    """What all ranks drew.

    ``experience`` has the latents and steps of this rank's samples, ``held[rank]``, and everything else of all samples; on one
    rank that is all there is. ``overshoot`` [n] of this rank's: see :func:`.inspection.clamp_media`.
    ``sampling_deviation``: the largest |ratio - 1| of the log-densities that sampling gave to those that took their place; None
    where none did. ``figures``: the metrics of :class:`~flowfactory.drift.panel.Panel` and of the gate of a KL. ``supplied``
    {label: [B]}: what each reward adds to the advantage of all samples, before it is clipped.
    """

    experience: Experience
    ranks: Ranks = ALONE
    held: Rows | None = None
    overshoot: Tensor | None = None
    sampling_deviation: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    supplied: Mapping[str, Tensor] = field(default_factory=dict)

    def redistribute(self, wanted: Rows, epoch: int = 0) -> Experience:
        """The samples ``wanted[rank]``, whole, from where they are; a joint work of the ranks."""
        workers, whole = self.ranks.workers, self.experience
        mine = list(wanted[workers.rank])
        found = iter(workers.exchange([whole.latents, *_tensors(whole.steps)], self._holders, wanted))
        conditions = whole.conditions.rows(mine)
        return replace(
            whole,
            latents=next(found),
            steps=tuple(step.map(lambda _: next(found), conditions) for step in whole.steps),
            conditions=conditions,
            plan=whole.plan.rows(mine),
            rewards={label: reward[mine] for label, reward in whole.rewards.items()},
            advantages=take(whole.advantages, mine),
            kl_gate=None if whole.kl_gate is None else take(whole.kl_gate, mine),
            groups=whole.groups[mine],
            sources=tuple(whole.sources[row] for row in mine) if whole.sources else (),
            epoch=epoch,
        )

    @cached_property
    def _holders(self) -> Holders:
        return Holders(self.held or [range(len(self.experience))])

    def write_back(self, pairs: Sequence[tuple[Tensor | None, Tensor | None]], shown: Rows) -> None:
        """Write the second of each pair, of the samples ``shown[rank]``, over what each rank holds of them, the first.

        A pair of which one is None is passed over. A joint work of the ranks.
        """
        kept = [(old, new.to(old.device)) for old, new in pairs if old is not None and new is not None]
        if not kept:
            return
        workers = self.ranks.workers
        wanted: list[list[int]] = [[] for _ in range(workers.count)]
        places: list[int] = []
        for row in dict.fromkeys(row for rows in shown for row in rows):
            for rank, place in self._holders.everywhere(row):
                wanted[rank].append(row)
                if rank == workers.rank:
                    places.append(place)
        for (old, _), arrived in zip(kept, workers.exchange([new for _, new in kept], Holders(shown), wanted), strict=True):
            old[places] = arrived

    def rounds(self, units: Sequence[Sequence[int]], size: int) -> Iterator[tuple[Rows, bool]]:
        """The samples that each rank works on, at most ``size`` of ``units`` at once, and whether this one's count.

        Every rank gets as many; one that has nothing left works on another's, whose losses then count for nothing.
        """
        workers = self.ranks.workers
        for wanted in assign_rounds(units, size, workers.count):
            yield [rows or wanted[0] for rows in wanted], bool(wanted[workers.rank])

    def micro_batches(self, units: Sequence[Sequence[int]], size: int, epoch: int = 0) -> Iterator[tuple[Experience, bool]]:
        """This rank's pieces of ``units``, and whether they count: the samples of :meth:`rounds`."""
        for shown, counts in self.rounds(units, size):
            yield self.redistribute(shown, epoch), counts


def _tensors(steps: Sequence[Step]) -> list[Tensor]:
    """Those of all ``steps``, in the order in which :meth:`~flowfactory.types.Step.map` changes them."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    for step in steps:
        step.map(note, step.conditions)
    return found
