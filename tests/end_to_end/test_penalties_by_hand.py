"""What every algorithm adds to its loss, an adaptive KL and the guard of the norm, against float64 formulas and autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import testing
from flowfactory.flow import FlowSDEConfig
from flowfactory.testing import FlowByHand, Learning, Weights
from flowfactory.types import Step
from flowfactory_awm.awm import AWMConfig
from flowfactory_awm.rvm import RVMConfig
from flowfactory_crd.crd import CRDConfig
from flowfactory_dpo.dgpo import DGPOConfig
from flowfactory_dpo.dpo import DPOConfig
from flowfactory_grpo.dppo import DPPOConfig
from flowfactory_grpo.flash_grpo import FlashGRPOConfig
from flowfactory_grpo.grpo import GRPOConfig
from flowfactory_grpo.grpo_guard import GRPOGuardConfig
from flowfactory_nft.nft import NFTConfig
from flowfactory_nft.vgrpo import VGRPOConfig

START, MOVED = (0.3, -0.2), (0.46, -0.35)
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
ADAPTIVE = {"name": "adaptive", "target": 1e-3}
LEVEL, WEIGHT = 0.8, 0.64
COUPLED: list[Any] = [GRPOConfig, GRPOGuardConfig, DPPOConfig, FlashGRPOConfig]
DECOUPLED: list[Any] = [NFTConfig, AWMConfig, CRDConfig, DGPOConfig, VGRPOConfig, RVMConfig]
GUARDED: list[Any] = [NFTConfig, AWMConfig, CRDConfig, DGPOConfig, VGRPOConfig, RVMConfig]

Term = Callable[[Tensor | Weights], Tensor]
"""``term(weights) -> [b]``, float64, differentiable where the weights are."""


def learn(config: Any, **options: Any) -> Learning:
    dynamics: Any = FlowSDEConfig(noise_level=LEVEL).build("dynamics") if config in COUPLED else testing.ODE()
    run = testing.learning(config.model_validate(options), ADVANTAGES, START, 4, dynamics, 8, 1)
    run.move_to(*MOVED)
    return run


def steps(run: Learning) -> list[Step]:
    """Where each loss of an update looks, in order."""
    return [step for step, _ in run.hooks.comparisons(run.experience)]


def norm(hand: FlowByHand, weights: Any) -> Tensor:
    """[b]: the velocity's length by the root of how many elements it has."""
    velocity = hand.velocity(weights)
    return torch.linalg.vector_norm(velocity, dim=1) / math.sqrt(velocity.shape[1])


def squared_excess(hand: FlowByHand) -> Term:
    """relu(rho - rho_ref)², arXiv:2606.27771."""
    return lambda weights: (norm(hand, weights) - norm(hand, START)).clamp(min=0).square()


def divergence(config: Any, step: Step) -> list[Term]:
    """Of velocities, or of the recorded Gaussian steps; one for each group of rows that are at one sigma."""
    if config not in COUPLED:
        hand = FlowByHand(step.latents, step.sigma)
        return [lambda weights: hand.distance(weights, START)]
    hands = [testing.step_by_hand(step.rows([row]), "flow-sde", LEVEL) for row in range(len(step.sigma))]
    return [lambda weights, own=own: own.divergence(weights, START) for own in hands]


def check(run: Learning, off: Learning, name: str, terms: Callable[[Step], list[Term]], weight: Tensor | float) -> None:
    """The term ``name`` of each loss of ``run``, and what it adds to those of ``off``, are as ``terms`` and ``weight`` say."""
    for loss, plain, step in zip(run.losses(), off.losses(), steps(run), strict=True):
        added = loss.values.detach() - plain.values.detach(), run.gradients(loss.values) - off.gradients(plain.values)
        check_term(run, loss.terms[name], added, terms(step), weight)


def check_term(run: Learning, found: Tensor, added: tuple[Tensor, Tensor], terms: list[Term], weight: Tensor | float) -> None:
    value = torch.cat([term(MOVED) for term in terms])
    gradient = torch.cat([testing.autograd_by_hand(term, MOVED) for term in terms])
    assert bool((value > 0).all())
    torch.testing.assert_close(found.detach().double(), value, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(run.gradients(found), gradient, rtol=1e-3, atol=1e-5)
    scale = torch.as_tensor(weight, dtype=torch.float64).expand(len(value))
    torch.testing.assert_close(added[0].double(), scale * value, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(added[1], scale[:, None] * gradient, rtol=1e-3, atol=5e-5)


def reward_weight(weight: float) -> Tensor:
    """[b]: CRD's, weight (least + r (1 - least)), of samples whose advantage 5 counts as wholly good."""
    r, least = torch.tensor(ADVANTAGES, dtype=torch.float64) / 10 + 0.5, 1e-4 / weight
    return weight * (least + r * (1 - least))


@pytest.mark.parametrize("config", [*COUPLED, *DECOUPLED], ids=lambda config: str(config.__name__))
def test_an_adaptive_kl_adds_what_its_formula_says_at_the_weight_it_has_come_to(config: Any) -> None:
    run, none = learn(config, kl=ADAPTIVE), learn(config, kl=0)
    run = replace(run, experience=replace(run.experience, kl_coefficient=WEIGHT))
    weight: Any = reward_weight(WEIGHT) if config is CRDConfig else WEIGHT
    check(run, none, "kl", lambda step: divergence(config, step), weight)


@pytest.mark.parametrize("config", GUARDED, ids=lambda config: str(config.__name__))
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_the_guard_of_the_norm_adds_what_its_formula_says(config: Any, kl: float) -> None:
    run, off = learn(config, norm_guard=0.5, kl=kl), learn(config, kl=kl)
    check(run, off, "norm_guard", lambda step: [squared_excess(FlowByHand(step.latents, step.sigma))], 0.5)


def test_the_two_samples_of_a_pair_are_guarded_half_each() -> None:
    run, off = learn(DPOConfig, norm_guard=0.5), learn(DPOConfig)

    def halves(step: Step) -> list[Term]:
        excess = squared_excess(FlowByHand(step.latents, step.sigma))
        # for each time the best of both groups, then the worst
        return [lambda weights: excess(weights).reshape(-1, 2, 2).mean(1).flatten()]

    check(run, off, "norm_guard", halves, 0.5)
