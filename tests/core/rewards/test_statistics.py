from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from flowfactory.rewards.statistics import advantage_shares, reward_metrics
from flowfactory.rl.advantages import advantages, reward_contributions
from flowfactory.runs.doctor.supply import dominant_reward

NAN = math.nan
GROUPS = torch.tensor([0, 0, 1, 1, 2, 2])


def test_the_figures_are_those_of_the_samples_a_reward_applies_to() -> None:
    rewards = {
        "a": torch.tensor([1.0, 3.0, 2.0, 2.0, 4.0, 6.0]),
        "b": torch.tensor([NAN, NAN, 5.0, 9.0, 1.0, 1.0]),
        "nowhere": torch.full((6,), NAN),
    }
    found = reward_metrics(rewards, reward_contributions(rewards, {"a": 1.0, "b": 1.0, "nowhere": 1.0}, GROUPS), GROUPS)
    assert found["reward/a/mean"] == pytest.approx(3.0)
    assert found["reward/a/std"] == pytest.approx(math.sqrt((4 + 0 + 1 + 1 + 1 + 9) / 6))
    assert found["reward/a/flat"] == pytest.approx(1 / 3)
    assert found["reward/b/mean"] == pytest.approx(4.0)
    assert found["reward/b/std"] == pytest.approx(math.sqrt((1 + 25 + 9 + 9) / 4))
    assert found["reward/b/flat"] == pytest.approx(1 / 2)
    assert not any("nowhere" in name and not name.startswith("advantage/") for name in found)
    assert found["advantage/nowhere/share"] == 0
    assert found["correlation/a/b"] == 0  # in no group do both differ
    assert not any("correlation" in name and "nowhere" in name for name in found)
    assert all(math.isfinite(value) for value in found.values())


def test_roundings_of_a_constant_are_flat_in_the_dtype_that_they_come_in() -> None:
    scores = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.3])
    scores[1] = torch.nextafter(scores[1], torch.tensor(1.0))
    for dtype, flat in ((torch.float32, 2 / 3), (torch.float64, 1 / 3)):
        own = scores.to(dtype)
        found = reward_metrics({"a": own}, reward_contributions({"a": own}, {"a": 1.0}, GROUPS), GROUPS)
        assert found["reward/a/flat"] == pytest.approx(flat)


@pytest.mark.parametrize(
    ("other", "expected"), [([0.0, 2, 10, 11, 5, 9], 1.0), ([2.0, 0, 1, 0, 4, 0], -1.0), ([1.0, 0, 0, 1, 0, 0], 0.0)]
)
def test_the_correlation_is_pearsons_of_what_differs_within_groups(other: list[float], expected: float) -> None:
    # within groups: -1 1 -0.5 0.5 -2 2
    rewards = {"a": torch.tensor([0.0, 2, 100, 101, -4, 0]), "b": torch.tensor(other)}
    found = reward_metrics(rewards, reward_contributions(rewards, {"a": 1.0}, GROUPS), GROUPS)["correlation/a/b"]
    centred = [[(x - y) / 2, (y - x) / 2] for x, y in zip(other[::2], other[1::2], strict=True)]
    a, b = [-1, 1, -0.5, 0.5, -2, 2], [value for pair in centred for value in pair]
    by_hand = sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    assert found == pytest.approx(by_hand)
    assert abs(found - expected) < 0.35


def test_shares_of_the_advantage_add_up_to_one_and_are_those_of_its_variance() -> None:
    rewards = {"large": torch.tensor([0.0, 10.0, 0.0, 10.0]), "small": torch.tensor([0.0, 1.0, 1.0, 0.0])}
    parts = reward_contributions(rewards, {"large": 1.0, "small": 1.0}, torch.tensor([0, 0, 1, 1]))
    found = advantage_shares(parts)
    assert sum(found.values()) == pytest.approx(1.0)
    # both groups are normalised to -1, 1, of which large is 10/11 in the first and 10/9 in the second
    assert found["large"] == pytest.approx((10 / 11 + 10 / 9) / 2, abs=1e-6)
    assert found["small"] == pytest.approx((1 / 11 - 1 / 9) / 2, abs=1e-6)
    assert advantage_shares({"a": torch.zeros(4), "b": torch.zeros(4)}) == {}


@pytest.mark.parametrize("aggregate", ["sum", "gdpo"])
@pytest.mark.parametrize("spread", ["group", "within", "global"])
def test_contributions_add_up_to_the_advantage_before_clipping(aggregate: Any, spread: Any) -> None:
    source = torch.Generator().manual_seed(3)
    groups = torch.arange(5).repeat_interleave(4)
    rewards = {label: torch.randn(20, generator=source) * scale for label, scale in (("a", 1.0), ("b", 100.0), ("c", 0.01))}
    weights = {"a": 1.0, "b": 0.5, "c": -2.0}
    parts = reward_contributions(rewards, weights, groups, aggregate, spread)
    total = advantages(rewards, weights, groups, aggregate, spread)
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(0).float(), total)
    found = advantage_shares(parts)
    assert (found["b"] > 0.99) is (aggregate == "sum")


@pytest.mark.parametrize("aggregate", ["sum", "gdpo"])
@pytest.mark.parametrize("spread", ["group", "within", "global"])
def test_a_reward_that_does_not_apply_to_a_prompt_is_left_out_of_its_advantage(aggregate: Any, spread: Any) -> None:
    everywhere = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0, 6.0])
    some = torch.tensor([NAN, NAN, 7.0, 9.0, NAN, NAN])
    found = advantages({"a": everywhere, "b": some}, {"a": 1.0, "b": 1.0}, GROUPS, aggregate, spread, clip=None)
    assert bool(found.isfinite().all())
    alone = reward_contributions({"a": everywhere}, {"a": 1.0}, GROUPS, aggregate, spread)["a"]
    both = reward_contributions({"a": everywhere, "b": some}, {"a": 1.0, "b": 1.0}, GROUPS, aggregate, spread)
    assert both["b"][[0, 1, 4, 5]].tolist() == [0.0] * 4
    assert bool((both["b"][2:4] != 0).all())
    if (aggregate, spread) == ("sum", "group"):
        torch.testing.assert_close(found[[0, 1, 4, 5]].double(), alone[[0, 1, 4, 5]], atol=1e-6, rtol=0)
    elsewhere = advantages({"b": some}, {"b": 1.0}, GROUPS, aggregate, spread)
    assert elsewhere[[0, 1, 4, 5]].tolist() == [0.0] * 4
    assert float(elsewhere[3]) > 0.9


def test_the_spread_of_all_is_that_of_the_samples_a_reward_applies_to() -> None:
    some = torch.tensor([NAN, NAN, 0.0, 4.0, 1.0, 3.0])
    found = reward_contributions({"b": some, "a": torch.zeros(6)}, {"b": 1.0, "a": 1.0}, GROUPS, "gdpo", "global")["b"]
    # centred: -2 2 -1 1, of variance 2.5; then whitened over all six
    normal = [0.0, 0.0, *(value / math.sqrt(2.5) for value in (-2, 2, -1, 1))]
    mean = sum(normal) / 6
    std = math.sqrt(sum((value - mean) ** 2 for value in normal) / 6)
    assert found.tolist() == pytest.approx([value / std for value in normal], abs=1e-6)


@pytest.mark.parametrize("quiet", [[0.2] * 6, [NAN] * 6])
def test_a_reward_that_differs_in_no_group_of_an_iteration_is_not_judged_by_it(quiet: list[float]) -> None:
    rewards = {"loud": torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 6.0]), "quiet": torch.tensor(quiet)}

    def dominant() -> str | None:
        shares = reward_contributions(rewards, dict.fromkeys(rewards, 1.0), GROUPS)
        return dominant_reward(reward_metrics(rewards, shares, GROUPS))

    assert dominant() is None
    rewards["quiet"] = torch.tensor([0.0, 0.01, *[0.2] * 4])
    assert dominant() == "loud"


def test_the_spread_of_groups_is_that_of_their_means() -> None:
    groups = torch.tensor([3, 1, 3, 1, 7])
    found = reward_metrics({"a": torch.tensor([1.0, 4.0, 3.0, 6.0, torch.nan])}, {"a": torch.zeros(5)}, groups)
    assert found["reward/a/group_std"] == pytest.approx(1.5)  # of the means 2 and 5; the third group has no score
