"""How far weights have moved, against all of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from flowfactory.training import movement
from flowfactory.training.movement import Movement


def weights(*shapes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    source = torch.Generator().manual_seed(0)
    return {f"w{i}": nn.Parameter(torch.randn(shape, generator=source)) for i, shape in enumerate(shapes)}


def test_of_small_tensors_the_norms_are_exact() -> None:
    parameters = {"a": nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]])), "b": nn.Parameter(torch.tensor(12.0))}
    moved = Movement(parameters)
    with torch.no_grad():
        parameters["a"] += torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    moved.mark()
    with torch.no_grad():
        parameters["b"] += 1.5
    found = moved.metrics()
    assert found["weights/moved"] == pytest.approx(2.5 / 13)
    assert found["weights/update"] == pytest.approx(1.5 / math.sqrt(13**2 + 4))


def test_large_tensors_count_by_their_size_though_few_of_their_weights_are_looked_at() -> None:
    parameters = weights((600, 500), (300, 200, 3), (10,))
    start = {name: value.detach().clone() for name, value in parameters.items()}
    moved = Movement(parameters)
    with torch.no_grad():
        parameters["w0"] += 0.03 * torch.randn(600, 500)
        parameters["w1"] *= 1.01
    change = math.sqrt(sum(float((value.detach() - start[name]).double().square().sum()) for name, value in parameters.items()))
    whole = math.sqrt(sum(float(value.double().square().sum()) for value in start.values()))
    assert moved.metrics()["weights/moved"] == pytest.approx(change / whole, rel=0.08)
    assert moved._start.numel() == 2 * movement.MOST + 10


def test_the_same_weights_are_looked_at_by_whoever_asks() -> None:
    parameters = weights((100, 100))
    assert torch.equal(Movement(parameters)._start, Movement(parameters)._start)


def test_weights_that_are_all_zero_have_no_relative_movement() -> None:
    parameters = {"a": nn.Parameter(torch.zeros(3))}
    moved = Movement(parameters)
    assert moved.metrics() == {}
