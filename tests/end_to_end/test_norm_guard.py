"""The option norm_guard of every algorithm that regresses a velocity, on the two-parameter bench."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowfactory import testing
from flowfactory.testing import Learning
from flowfactory_awm.awm import AWMConfig
from flowfactory_awm.ram import RAMConfig
from flowfactory_awm.rvm import RVMConfig
from flowfactory_crd.crd import CRDConfig
from flowfactory_dpo.dgpo import DGPOConfig
from flowfactory_dpo.dpo import DPOConfig
from flowfactory_nft.nft import NFTConfig
from flowfactory_nft.vgrpo import VGRPOConfig

START, LARGER, SMALLER = (0.3, -0.2), (0.6, -0.4), (0.15, -0.1)
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
WITH_KL = [NFTConfig, VGRPOConfig, AWMConfig, RVMConfig, CRDConfig, DGPOConfig]
ALL = [*WITH_KL, RAMConfig, DPOConfig]


def learn(config: Any, **options: Any) -> Learning:
    run: Learning = testing.learning(config.model_validate(options), ADVANTAGES, START, 4, testing.ODE(), 8, 1)
    return run


@pytest.mark.parametrize("config", ALL)
def test_twice_the_reference_is_pulled_back_by_what_the_formula_says(config: Any) -> None:
    off, on = learn(config), learn(config, norm_guard=0.5)
    for run in (off, on):
        run.move_to(*LARGER)
    for without, loss in zip(off.losses(), on.losses(), strict=True):
        term = loss.terms["norm_guard"]
        assert bool((term > 0).all())
        torch.testing.assert_close(loss.values, without.values + 0.5 * term)
        torch.testing.assert_close(loss.metrics["velocity_norm"], torch.full_like(term, 2.0))
        # the velocity is linear in the weights: rho(c w) = c rho(w), so the slope along w at 2 w_ref is 2 (rho_ref)(2 rho_ref)
        slope = on.gradient(term).double() @ torch.tensor(LARGER, dtype=torch.float64)
        torch.testing.assert_close(slope, 4 * term.sum().double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", ALL)
@pytest.mark.parametrize("weights", [START, SMALLER])
def test_a_velocity_no_larger_than_the_reference_learns_as_without(config: Any, weights: tuple[float, float]) -> None:
    off, on = learn(config), learn(config, norm_guard=0.5)
    for run in (off, on):
        run.move_to(*weights)
    for without, loss in zip(off.losses(), on.losses(), strict=True):
        assert torch.equal(loss.values, without.values)
        assert torch.equal(on.gradient(loss.values), off.gradient(without.values))


@pytest.mark.parametrize("config", WITH_KL)
def test_a_kl_and_the_guard_share_the_forward_of_the_reference(config: Any) -> None:
    counts = []
    for options in ({"kl": 0.1}, {"kl": 0.1, "norm_guard": 0.5}, {"norm_guard": 0.5}):
        run = learn(config, **options)
        run.move_to(*LARGER)
        counts.append(run.count_forwards()[1].forwards)
    assert len(set(counts)) == 1
