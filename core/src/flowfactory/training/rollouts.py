"""The samples of an iteration on whichever rank they were drawn: scored in whole groups, redistributed to learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from flowfactory.data.batches import Batch
from flowfactory.distributed.partition import Rows, assign_rounds, split_evenly, split_with_padding
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.experience import Experience
from flowfactory.rewards.scoring import PendingScores, Rewards, merge_scores
from flowfactory.rl.groups import rows_by_group
from flowfactory.training import inspection
from flowfactory.training.sampler import Sampler, to_samples
from flowfactory.types import Conditions, Index, SamplingPlan, Trajectory


@dataclass(frozen=True)
class RankRollout:
    """The trajectory of this rank's samples, and which of all samples each rank has."""

    trajectory: Trajectory
    held: Rows


def roll_out(
    sampler: Sampler, batch: Batch, conditions: Conditions, plan: SamplingPlan, batch_size: int, ranks: Ranks
) -> RankRollout:
    """All samples of ``batch``, each rank its part and as many as the others, at most ``batch_size`` at once.

    UserError: what was drawn is not of the form that ``plan`` asks for. RunError: it is not finite on some rank. A joint
    work of the ranks.
    """
    held = split_with_padding(range(len(plan.keys)), ranks.workers.count)
    mine = held[ranks.workers.rank]
    own = conditions.rows(mine)
    drawn = sampler.draw(own, plan.rows(mine), batch_size)
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
    rank that is all there is. ``overshoot`` [n] of this rank's: see :meth:`~flowfactory.types.Trajectory.clamp`.
    ``sampling_deviation``: the largest |ratio - 1| of the log-densities that sampling gave to those that took their place; None
    where none did.
    """

    experience: Experience
    ranks: Ranks = ALONE
    held: Rows | None = None
    overshoot: Tensor | None = None
    sampling_deviation: float | None = None

    def redistribute(self, wanted: Rows, epoch: int = 0) -> Experience:
        """The samples ``wanted[rank]``, whole, from where they are; a joint work of the ranks."""
        mine, whole = list(wanted[self.ranks.workers.rank]), self.experience

        def moved(tensor: Tensor) -> Tensor:
            return self.ranks.workers.exchange(tensor, self._held, wanted)

        conditions = whole.conditions.rows(mine)
        return replace(
            whole,
            latents=moved(whole.latents),
            steps=tuple(step.map(moved, conditions) for step in whole.steps),
            conditions=conditions,
            plan=whole.plan.rows(mine),
            rewards={label: reward[mine] for label, reward in whole.rewards.items()},
            advantages=whole.advantages[mine],
            groups=whole.groups[mine],
            epoch=epoch,
        )

    @property
    def _held(self) -> Rows:
        return self.held or [range(len(self.experience))]

    def write_back(self, kept: Tensor | None, fresh: Tensor | None, shown: Rows) -> None:
        """Write ``fresh``, of the samples ``shown[rank]``, over what each rank holds of them, ``kept``; nothing where none is.

        A joint work of the ranks.
        """
        if kept is None or fresh is None:
            return
        there = {row for rows in shown for row in rows}
        places = [place for place, row in enumerate(self._held[self.ranks.workers.rank]) if row in there]
        wanted = [[row for row in rows if row in there] for rows in self._held]
        kept[places] = self.ranks.workers.exchange(fresh.to(kept.device), shown, wanted)

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


def score_on_ranks(
    rewards: Rewards, drawn: RankRollout, batch: Batch, ranks: Ranks, reward_ranks: int, frame_rate: float | None
) -> PendingScores | None:
    """The scores, on their way, of this rank's part of the whole groups in ``batch``, which ``drawn`` are the media of.

    The first ``reward_ranks`` workers see groups, each other ones, and one rank of each; None where this one sees none. A joint
    work of the ranks.
    """
    if not ranks.speaks:
        return None
    ranks = ranks.workers
    groups = rows_by_group(range(len(batch.keys)), batch.groups)
    wanted = [*split_evenly(groups, reward_ranks), *[[]] * (ranks.count - reward_ranks)]
    media = ranks.exchange(drawn.trajectory.media, drawn.held, wanted)
    mine = wanted[ranks.rank]
    return rewards.start(to_samples(media, batch.rows(mine), frame_rate)) if mine else None


def gather_scores(started: Sequence[PendingScores | None], ranks: Ranks) -> dict[str, Tensor]:
    """{label: scores [n]} of all that was started on all ranks, in order; waits for them. A joint work of the ranks."""
    mine = [scoring.result() if scoring else {} for scoring in started]
    return merge_scores([found for piece in zip(*ranks.gather(mine), strict=True) for found in piece if found])
