"""Which samples the panel looks at, and what it tells of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowfactory.data.batches import make_batch, split_whole_groups
from flowfactory.distributed.partition import split_with_padding
from flowfactory.distributed.ranks import ALONE
from flowfactory.drift.panel import SAMPLES, Panel, choose, grid_period
from flowfactory.types import Prompt


@given(st.integers(1, 100), st.integers(1, 40))
def test_a_bounded_number_of_samples_of_whole_pairs_is_chosen(groups: int, members: int) -> None:
    chosen = choose(torch.arange(groups).repeat_interleave(members))
    rows = [row for group in chosen for row in group]
    assert len(set(rows)) == len(rows) <= SAMPLES
    assert all(len(group) >= min(2, members) for group in chosen)
    assert all(row // members == group[0] // members for group in chosen for row in group)
    assert len(rows) >= min(groups * members, SAMPLES // 2)


def test_groups_are_spread_evenly() -> None:
    chosen = choose(torch.arange(48).repeat_interleave(12))
    assert [group[0] // 12 for group in chosen] == list(range(0, 48, 3))
    assert all(len(group) == 2 for group in chosen)
    assert [len(group) for group in choose(torch.zeros(100, dtype=torch.int64))] == [SAMPLES]
    assert choose(torch.arange(64)) == [[row] for row in range(0, 64, 2)]


def told(batch_size: int) -> dict[str, float]:
    batch = make_batch([Prompt("", i) for i in range(5)], 3)
    media = torch.rand(15, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    panel = Panel(batch.groups, ALONE)
    for rows in split_whole_groups(batch, batch_size):
        held = split_with_padding(range(len(rows)), 1)
        panel.add(media[list(rows)], torch.zeros(len(rows), 4, 2, 2), held, rows)
    return panel.metrics()


def test_what_is_told_does_not_depend_on_the_batch_size() -> None:
    assert told(3) == pytest.approx(told(100), rel=1e-6)


def test_the_mean_and_the_spread_are_over_samples_and_of_the_diversity_over_groups() -> None:
    levels = torch.tensor([0.0, 0.2, 0.5, 0.9])  # two groups: within them 0.2 and 0.4
    panel = Panel(torch.tensor([0, 0, 1, 1]), ALONE)
    media = levels.view(4, 1, 1, 1).expand(4, 1, 8, 8)
    panel.add(media, torch.zeros(4, 4, 8, 8), [range(4)], range(4))
    found = panel.metrics("drift/heldout/")
    assert found["drift/heldout/luma"] == pytest.approx(0.4)
    assert found["drift/heldout/luma/std"] == pytest.approx((0.16 + 0.04 + 0.01 + 0.25) ** 0.5 / 2)
    assert found["drift/heldout/diversity"] == pytest.approx(0.3)
    assert found["drift/heldout/diversity/std"] == pytest.approx(0.1)
    assert found["drift/heldout/groups"] == 2
    assert "drift/heldout/grid_energy" not in found  # latents are the pixels: no decoder leaves a grid


def test_single_samples_have_no_diversity() -> None:
    panel = Panel(torch.arange(3), ALONE)
    panel.add(torch.rand(3, 3, 8, 8), torch.zeros(3, 4, 2, 2), [range(3)], range(3))
    assert "drift/diversity" not in panel.metrics()


def test_the_grid_is_that_of_the_latents() -> None:
    assert grid_period(torch.zeros(1, 3, 64, 32), torch.zeros(1, 16, 8, 4)) == 8
    assert grid_period(torch.zeros(1, 9, 3, 64, 32), torch.zeros(1, 16, 3, 8, 4)) == 8
    assert grid_period(torch.zeros(1, 3, 64, 32), torch.zeros(1, 32, 64)) is None  # packed
    assert grid_period(torch.zeros(1, 3, 64, 32), torch.zeros(1, 3, 64, 32)) is None
    assert grid_period(torch.zeros(1, 3, 64, 32), torch.zeros(1, 3, 8, 8)) is None
