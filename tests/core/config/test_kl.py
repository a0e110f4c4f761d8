"""PPO's controller of a KL's weight, arXiv:1707.06347, section 4."""

from __future__ import annotations

import pytest

from flowfactory.config.kl import AdaptiveKL


@pytest.mark.parametrize(
    ("divergence", "weight"),
    [(0.0, 0.25), (0.199, 0.25), (0.201, 0.5), (0.3, 0.5), (0.449, 0.5), (0.451, 1.0), (1e9, 1.0)],
)
def test_the_weight_halves_below_a_band_around_the_target_and_doubles_above(divergence: float, weight: float) -> None:
    assert AdaptiveKL(target=0.3, start=0.5)(0.5, divergence) == weight


@pytest.mark.parametrize(("divergence", "bound"), [(0.0, 0.5 / 1024), (1.0, 512.0)])
def test_the_weight_stays_within_bounds_and_comes_back(divergence: float, bound: float) -> None:
    kl, weight = AdaptiveKL(target=0.3, start=0.5), 0.5
    for _ in range(30):
        weight = kl(weight, divergence)
    assert weight == bound
    assert kl(weight, 1.0 - divergence) != bound
