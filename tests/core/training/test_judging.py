"""How much of an iteration each rank judges; that ranks give the scores of one is shown in tests/distributed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowfactory.data.batches import make_batch, split_whole_groups
from flowfactory.distributed.exchange import Holders
from flowfactory.distributed.partition import split_with_padding
from flowfactory.distributed.ranks import Ranks
from flowfactory.training.judging import Table
from flowfactory.types import Prompt


def rounds(groups: int, members: int, batch_size: int, ranks: int) -> list[range]:
    """The samples that are drawn together."""
    batch = make_batch([Prompt("", i) for i in range(groups)], members)
    return list(split_whole_groups(batch, batch_size * ranks))


def where_drawn(groups: int, members: int, batch_size: int, ranks: int) -> list[list[list[int]]]:
    """The samples that each rank judges, round by round, of a reward that is pointwise."""
    found = []
    for rows in rounds(groups, members, batch_size, ranks):
        holders = Holders(split_with_padding(rows, ranks))
        found.append([[row for row, _ in holders.own(rank)] for rank in range(ranks)])
    return found


def dealt(groups: int, members: int, batch_size: int, ranks: int, judges: int) -> tuple[list[list[list[int]]], int]:
    """The same of a reward that compares; and the most groups whose media wait on a rank after a round."""
    units = [list(range(i * members, (i + 1) * members)) for i in range(groups)]
    tables = [Table(["it"], units, judges, Ranks(rank, ranks)) for rank in range(ranks)]
    given: list[list[int]] = [[] for _ in range(ranks)]
    judged: list[list[int]] = [[] for _ in range(ranks)]
    found, waiting = [], 0
    for rows in rounds(groups, members, batch_size, ranks):
        now = []
        for rank, table in enumerate(tables):
            wanted = table.deal(rows[-1])[rank]
            due, media = table.take(wanted, torch.tensor(wanted, dtype=torch.float64)[:, None])
            assert media.flatten().tolist() == due, "another sample's media"
            given[rank] += wanted
            judged[rank] += due
            waiting = max(waiting, (len(given[rank]) - len(judged[rank])) // members)
            now.append(due)
        found.append(now)
    return found, waiting


def total(judged: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    """How many samples each rank has judged."""
    return [sum(map(len, mine)) for mine in zip(*judged, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 3, 8, 16, 100])
def test_of_48_groups_of_16_each_of_eight_ranks_judges_an_eighth_and_at_the_same_time(batch_size: int) -> None:
    alone = where_drawn(48, 16, batch_size, 8)
    assert total(alone) == [96] * 8
    assert all(len({len(mine) for mine in now}) == 1 for now in alone), "some wait while others judge"
    compared, waiting = dealt(48, 16, batch_size, 8, 8)
    assert total(compared) == [96] * 8
    # a round of four groups is judged with the next one, and one of 50 in part
    assert all(len({len(mine) for mine in now}) == 1 for now in compared), "some wait while others judge"
    assert waiting <= 1


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 9), st.integers(1, 8), st.booleans())
def test_every_sample_is_judged_once_and_as_evenly_as_it_comes(
    groups: int, members: int, batch_size: int, ranks: int, first: bool
) -> None:
    samples = list(range(groups * members))
    alone = where_drawn(groups, members, batch_size, ranks)
    assert sorted(row for now in alone for mine in now for row in mine) == samples, "padding is judged, or a sample is not"
    judges = 1 if first else ranks
    compared, waiting = dealt(groups, members, batch_size, ranks, judges)
    assert sorted(row for now in compared for mine in now for row in mine) == samples
    shares = total(compared)
    assert max(shares[:judges]) - min(shares[:judges]) <= members
    assert not any(shares[judges:])
    assert waiting <= (0 if first else 1)
    for now in compared:
        for mine in now:
            assert all(mine.count(row) == 1 for row in mine)
            whole = {row // members for row in mine}
            assert sorted(mine) == [row for group in sorted(whole) for row in range(group * members, (group + 1) * members)]
