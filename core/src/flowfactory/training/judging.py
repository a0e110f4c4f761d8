"""Which rank judges which of an iteration's samples: pointwise rewards where they were drawn, others whole groups in turn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import islice

import torch
from torch import Tensor

from flowfactory.config.schema import DistributedConfig
from flowfactory.data.batches import Batch
from flowfactory.distributed.exchange import Holders
from flowfactory.distributed.partition import deal
from flowfactory.distributed.ranks import Ranks
from flowfactory.rewards.executors import applies
from flowfactory.rewards.scoring import PendingScores, Rewards, merge_scores
from flowfactory.rl.groups import rows_by_group
from flowfactory.training.rollouts import RankRollout
from flowfactory.training.sampler import to_samples
from flowfactory.types import Samples


class Judging:
    """The scores of the samples of ``batch``, which come round after round.

    A pointwise reward judges each sample on the rank that drew it, and no medium is exchanged. The groups that another reward
    applies to are dealt to the ranks in turn over all rounds, and wait there until every rank has one: then all judge at once,
    and a rank holds the media of one group more than it was given at the most. Where only the first ``judges`` ranks compute
    rewards, everything is dealt to them. Of ranks that share forwards, which draw the same samples, one judges them.
    ``tell`` hears how many samples are judged, as this rank's own answers tell, whenever this thread turns to judging.
    """

    def __init__(
        self,
        rewards: Rewards,
        batch: Batch,
        ranks: Ranks,
        judges: int,
        frame_rate: float | None,
        tell: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._rewards, self._batch, self._ranks, self._frame_rate = rewards, batch, ranks, frame_rate
        self._workers = ranks.workers
        self._started: list[tuple[list[int], PendingScores]] = []
        self._tell, self._drawn, self._there = tell, 0, 0
        told = self._workers.gather(rewards.pointwise_labels) if judges == self._workers.count else []
        everywhere = [set(labels) for labels in told]
        # a server may tell two ranks two things: then it judges groups
        self._pointwise = tuple(label for label in rewards.labels if everywhere and all(label in told for told in everywhere))
        groups = rows_by_group(range(len(batch.keys)), batch.groups)
        dealt: dict[tuple[int, ...], list[str]] = {}
        for label in rewards.labels:
            if label not in self._pointwise:
                judged = [i for i, rows in enumerate(groups) if applies(label, batch.prompts[rows[0]].metadata)]
                dealt.setdefault(tuple(judged), []).append(label)
        self._tables = [Table(labels, [groups[i] for i in judged], judges, self._workers) for judged, labels in dealt.items()]

    def add(self, drawn: RankRollout, rows: Sequence[int]) -> None:
        """Have judged what was drawn of the samples ``rows``: whole groups, in the batch's order. A joint work of the ranks."""
        if not self._ranks.speaks:
            return
        self._tell_judged()
        self._drawn = rows[-1] + 1
        me = self._workers.rank
        media, holders = drawn.trajectory.media, Holders([[rows[i] for i in held] for held in drawn.held])
        own = holders.own(me)
        questions: list[tuple[Collection[str], list[int], Tensor]] = []
        if self._pointwise and own:
            alone = media if len(own) == len(media) else media[[place for _, place in own]]
            questions.append((self._pointwise, [row for row, _ in own], alone))
        last = rows[-1]
        wanted = [table.deal(last) for table in self._tables]
        moved = [list(dict.fromkeys(row for mine in each for row in mine)) for each in zip(*wanted, strict=True)]
        if any(moved):
            (arrived,) = self._workers.exchange([media], holders, moved)
            places = {row: place for place, row in enumerate(moved[me])}
            for table, dealt in zip(self._tables, wanted, strict=True):
                mine = dealt[me]
                alike = mine == moved[me]
                due, judged = table.take(mine, arrived if alike else arrived[[places[row] for row in mine]])
                if due:
                    questions.append((table.labels, due, judged))
        self._start(questions)

    def _start(self, questions: Sequence[tuple[Collection[str], list[int], Tensor]]) -> None:
        asked = [(labels, self._samples(rows, media)) for labels, rows, media in questions]
        self._started += [(questions[place][1], pending) for place, pending in self._rewards.start_each(asked)]

    def _samples(self, rows: list[int], media: Tensor) -> Samples:
        return to_samples(media, self._batch.rows(rows), self._frame_rate)

    def _tell_judged(self) -> None:
        """Tell how many of the samples drawn so far are judged: the share of this rank's answers that are there, in order."""
        while self._there < len(self._started) and self._started[self._there][1].done():
            self._there += 1
        self._tell(self._drawn * self._there // len(self._started) if self._started else 0)

    def scores(self) -> dict[str, Tensor]:
        """{label: scores [B]} of the whole batch; waits for them. A joint work of the ranks."""
        mine = []
        for rows, pending in self._started:
            self._tell_judged()
            mine.append((rows, pending.result()))
        self._tell(self._drawn)
        pieces = [piece for told in self._ranks.gather(mine) for piece in told]
        return merge_scores(self._rewards.labels, len(self._batch.keys), pieces)


class Table:
    """The ``groups`` that some rewards, of the same prompts, are dealt, and those that wait on this rank to be judged."""

    def __init__(self, labels: Sequence[str], groups: Sequence[list[int]], judges: int, ranks: Ranks) -> None:
        self.labels = labels
        self._groups, self._judges, self._ranks = groups, judges, ranks
        self._dealt = 0
        self._waiting: list[tuple[list[int], Tensor]] = []

    def deal(self, last: int) -> list[list[int]]:
        """The samples that each rank is given, of the groups up to the sample ``last`` that none was given before."""
        fresh = []
        for rows in islice(self._groups, self._dealt, None):
            if rows[-1] > last:
                break
            fresh.append(rows)
        given = deal(fresh, self._judges, self._dealt)
        self._dealt += len(fresh)
        return [*given, *[[]] * (self._ranks.count - self._judges)]

    def take(self, rows: list[int], media: Tensor) -> tuple[list[int], Tensor]:
        """Of what waits, with ``rows`` and their ``media`` [n, ...] that came now, what is to be judged now.

        That is of the groups of which every rank has been given as many, or of all when all are dealt.
        """
        due = count_due(self._dealt, len(self._groups), self._judges)
        before = self._groups[due][0] if due < len(self._groups) else None
        now, later = list[tuple[list[int], Tensor]](), list[tuple[list[int], Tensor]]()
        for held, shown in (*self._waiting, (rows, media)):
            count = len(held) if before is None else sum(row < before for row in held)
            now.append((held[:count], shown[:count]))
            if count < len(held):
                later.append((held[count:], shown[count:].clone() if count else shown))  # not with what is judged now
        self._waiting = later
        chosen = [row for held, _ in now for row in held]
        pieces = [shown for held, shown in now if held]
        return chosen, pieces[0] if len(pieces) == 1 else torch.cat(pieces) if pieces else media[:0]


def judges_here(config: DistributedConfig, ranks: Ranks) -> bool:
    """Whether this rank computes rewards."""
    return ranks.speaks and ranks.workers.rank < config.count_reward_ranks(ranks.workers.count)


def count_due(dealt: int, groups: int, judges: int) -> int:
    """How many of ``groups``, of which ``dealt`` are dealt to ``judges`` ranks in turn, are judged by now."""
    return groups if dealt == groups else dealt // judges * judges
