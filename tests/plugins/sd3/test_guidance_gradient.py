"""The gradient of classifier-free guidance, against float64 autograd on the transformer of diffusers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import Step, flow
from flowfactory.flow.dynamics import ODE
from flowfactory.models import linear_guidance

PROMPTS = ("a photo of a red circle", "green square")
GUIDANCE = 3.0


def place(model: Any, gradient: str) -> Step:
    conditions = model.conditions(PROMPTS, guidance=GUIDANCE)
    if gradient == "conditional":
        conditions = replace(conditions, negative=replace(conditions.negative, detached=True))
    noise = flow.noise(model.plan(PROMPTS, (32, 32), 4, GUIDANCE), (4, 16, 16))
    return Step(noise, torch.tensor([0.9, 0.4]), conditions, GUIDANCE, ODE())


def in_float64(transformer: Any, step: Step, detached: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The velocity without + g (given - without), and the gradients of its sum of squares by each weight."""
    transformer = copy.deepcopy(transformer).double()

    def velocity(conditions: Any) -> Tensor:
        found: Tensor = transformer(
            hidden_states=step.latents.double(),
            timestep=step.sigma.double() * 1000,
            encoder_hidden_states=conditions.stack("embeds").double(),
            pooled_projections=conditions.stack("pooled").double(),
            return_dict=False,
        )[0]
        return found

    without = velocity(step.conditions.negative)
    without = without.detach() if detached else without
    guided = without + GUIDANCE * (velocity(step.conditions) - without)
    weights = dict(transformer.named_parameters())
    gradients = torch.autograd.grad(guided.square().sum(), list(weights.values()), allow_unused=True)
    pairs = zip(weights, gradients, strict=True)
    return guided.detach(), {f"transformer.{name}": gradient for name, gradient in pairs if gradient is not None}


@pytest.mark.parametrize("gradient", ["exact", "conditional"])
def test_it_is_that_of_float64_autograd(opened: Any, checkpoint: Any, gradient: str) -> None:
    model = opened(checkpoint(), "full")
    step = place(model, gradient)
    velocity = model.policy.evaluate(step).velocity
    expected, slopes = in_float64(model.policy.modules["transformer"], step, gradient == "conditional")
    torch.testing.assert_close(velocity.double(), expected, rtol=1e-5, atol=1e-5)
    names = [name for name in model.policy.parameters if name in slopes]
    assert len(names) > 50
    found = torch.autograd.grad(velocity.square().sum(), [model.policy.parameters[name] for name in names])
    for name, one in zip(names, found, strict=True):
        scale = float(slopes[name].abs().max())
        torch.testing.assert_close(one.double(), slopes[name], rtol=1e-3, atol=1e-4 * max(1.0, scale))


def test_the_numbers_are_those_of_the_two_velocities_to_the_bit(opened: Any, checkpoint: Any) -> None:
    model = opened(checkpoint(), "full")
    step = place(model, "conditional")
    alone = replace(step, guidance=1.0, conditions=replace(step.conditions, negative=None))
    negative = step.conditions.negative
    assert negative is not None
    without = model.policy.evaluate(replace(alone, conditions=negative)).velocity
    given = model.policy.evaluate(alone).velocity
    mixed = linear_guidance(None, given, without, GUIDANCE, step.sigma)  # type: ignore[arg-type]
    assert torch.equal(model.policy.evaluate(step).velocity, mixed)
    with torch.no_grad():
        assert torch.equal(model.policy.evaluate(step).velocity, mixed)
