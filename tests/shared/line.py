"""A model of one matrix, whose velocities and gradients can be told by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowfactory import flow
from flowfactory.flow.dynamics import ODE
from flowfactory.policy.policy import Policy
from flowfactory.types import Conditions, Evaluation, Step, Trainable

CPU = torch.device("cpu")
X = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.25]])
SIGMA = torch.tensor([0.9, 0.5, 0.2])


class Line:
    """velocity = guidance A x, with the matrix A as the one weight; knows how often it went forward."""

    def __init__(self, training: Any = "full") -> None:
        self.module = nn.Sequential(nn.Linear(2, 2, bias=False))
        self.set([[0.5, 0.0], [0.0, 0.5]], self.module[0].weight)
        self.forwards: list[bool] = []
        self.module.register_forward_hook(lambda *_: self.forwards.append(torch.is_grad_enabled()))
        trainable = Trainable({"line": self.module}, training, ("0",), (), "", guided=False)
        self.policy = Policy(trainable, self.evaluate, CPU)

    def evaluate(self, step: Step) -> Evaluation:
        return flow.evaluate(step.guidance * self.module(step.latents), step)

    @torch.no_grad()
    def set(self, rows: list[list[float]], weight: Tensor | None = None) -> None:
        (self.weight if weight is None else weight).copy_(torch.tensor(rows))

    @property
    def weight(self) -> Tensor:
        return self.policy.parameters["line.0.weight"]

    def move(self, rows: list[list[float]]) -> None:
        """As an update would."""
        self.set(rows)
        self.policy.mark_changed()


def step(guidance: float = 1.0) -> Step:
    return Step(X, SIGMA, Conditions(({},) * 3), guidance, ODE())


def by_hand(rows: list[list[float]], guidance: float = 1.0) -> Tensor:
    return (guidance * X.double() @ torch.tensor(rows, dtype=torch.float64).T).float()


START, A, B, C = ([[0.5, 0.0], [0.0, 0.5]], [[1.0, 2.0], [3.0, 4.0]], [[-1.0, 0.0], [0.5, 0.25]], [[2.0, 0.0], [0.0, -2.0]])
