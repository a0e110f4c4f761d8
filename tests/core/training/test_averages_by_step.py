"""Averages of weights that count optimizer steps: when they move."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from flowfactory.config.ema import Decay
from flowfactory.config.schema import TrainingConfig
from flowfactory.experience import Loss
from flowfactory.policy.policy import Policy
from flowfactory.training.learner import Learner
from flowfactory.training.metrics import UpdateMetrics
from flowfactory.types import Evaluation, Trainable

RISING = {"name": "linear", "end": 0.3, "iterations": 3, "counted": "steps"}  # keeps 0, 0.1, 0.2, 0.3, 0.3, ...


class Scale(nn.Module):
    """A weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))


def test_it_moves_after_each_optimizer_step_and_not_after_an_iteration() -> None:
    net = Scale()
    trainable = Trainable({"net": net}, "full", (), (), "", guided=False)
    policy = Policy(trainable, lambda step: Evaluation(step.latents), torch.device("cpu"))
    policy.track_ema("by step", TypeAdapter(Decay).validate_python(RISING))
    policy.track_ema("by iteration", TypeAdapter(Decay).validate_python({"name": "constant", "decay": 0.75}))
    learner = Learner(policy, TrainingConfig.model_validate({"optimizer": {"lr": 0.1}}))
    expected, started = 0.5, 0.5
    for step in range(6):
        learner.step([Loss((net.a - 2).square()[None])], UpdateMetrics())
        present, kept = net.a.item(), min(0.1 * step, 0.3)
        expected = kept * expected + (1 - kept) * present
        if step % 2:  # two steps an iteration
            policy.iteration_finished(step // 2)
            started = 0.75 * started + 0.25 * present
        for name, value in (("by step", expected), ("by iteration", started)):
            with policy.using(name):
                assert net.a.item() == pytest.approx(value, rel=1e-6), (name, step)
        assert net.a.item() == present
    assert expected != pytest.approx(started, rel=1e-2)
