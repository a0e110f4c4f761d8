from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from flowfactory.config.component import AlgorithmConfig
from flowfactory.experience import Loss
from flowfactory.rl.groups import rows_by_group
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.setup import Run
from flowfactory.training.update import micro_batch_units

Prepared = Callable[..., Run]


class Pointwise(AlgorithmConfig):
    def build(self, label: str) -> object:
        return object()


class Groupwise(Pointwise):
    groupwise: ClassVar[bool] = True


class Pairs(Groupwise):
    compared: ClassVar[int | None] = 2


def test_what_is_dealt_is_the_samples_themselves(prepared: Prepared) -> None:
    pool = collect_rollouts(prepared(), 0, Timer(torch.device("cpu")))
    rows = [5, 3, 14]
    piece, expected = pool.redistribute([rows], epoch=2), pool.experience.rows(rows)
    assert piece.epoch == 2
    assert piece.plan.keys == expected.plan.keys
    for name in ("latents", "advantages", "groups"):
        assert torch.equal(getattr(piece, name), getattr(expected, name))
    assert torch.equal(piece.rewards["bright"], expected.rewards["bright"])
    for step, other in zip(piece.steps, expected.steps, strict=True):
        assert torch.equal(step.latents, other.latents)
        assert torch.equal(step.log_prob, other.log_prob)  # type: ignore[arg-type]
        assert step.conditions == other.conditions


@pytest.mark.parametrize(
    ("algorithm", "batch_size", "lengths"),
    [
        (Pointwise(), 5, [4, 4, 4, 4]),  # of sixteen, no piece larger than five
        (Pointwise(), 16, [16]),
        (Groupwise(), 3, [4, 4, 4, 4]),  # a group is never split
        (Groupwise(), 8, [8, 8]),
        (Groupwise(), 12, [8, 8]),
        (Pairs(), 3, [4, 4, 4, 4]),
        (Pairs(), 4, [8, 8]),  # two of four members go through the transformer
        (Pairs(), 8, [16]),
    ],
)
def test_a_piece_is_what_fits_a_forward(
    algorithm: AlgorithmConfig, batch_size: int, lengths: list[int], prepared: Prepared
) -> None:
    pool = collect_rollouts(prepared(), 0, Timer(torch.device("cpu")))
    pool = replace(pool, experience=replace(pool.experience, batch_size=batch_size))
    units, size = micro_batch_units(range(16), pool.experience, algorithm)
    pieces = list(pool.micro_batches(units, size))
    assert [len(piece) for piece, _ in pieces] == lengths
    assert all(counts for _, counts in pieces)
    if algorithm.groupwise:
        assert all((piece.groups == group).sum() == 4 for piece, _ in pieces for group in piece.groups)


def test_rows_are_told_by_their_group() -> None:
    groups = torch.tensor([4, 4, 1, 1, 4])
    assert rows_by_group([4, 2, 0], groups) == [[4, 0], [2]]


def test_an_idle_loss_reaches_the_weights_and_is_of_no_sample() -> None:
    weight = torch.ones(3, requires_grad=True)
    loss: Any = Loss(weight * 2, metrics={"m": weight.detach()}, extremes={"e": weight.detach()}).add_term(
        "kl", 1.0, weight * 3
    )
    idle = loss.empty()
    assert (len(idle.values), idle.metrics, idle.extremes, list(idle.terms)) == (0, {}, {}, ["kl"])
    idle.values.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0.0, 0.0, 0.0]
