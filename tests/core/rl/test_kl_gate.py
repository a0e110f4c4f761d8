"""The gate of a KL, GARDO, arXiv:2512.24138, section 4.2, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from flowfactory.rl.kl_gate import most_uncertain, uncertainty, win_rate

NONE = math.nan


def near(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), equal_nan=True)


@pytest.mark.parametrize(
    ("scores", "rates"),
    [
        ([3.0, 1.0, 2.0], [1, 0, 1 / 2]),
        ([1.0, 1.0, 0.0, 5.0], [(1 + 1 / 2) / 3, (1 + 1 / 2) / 3, 0, 1]),  # equal ones count half
        ([2.0, 2.0, 2.0], [1 / 2, 1 / 2, 1 / 2]),
        ([4.0, NONE, 1.0, 3.0], [1, NONE, 0, 1 / 2]),  # one it does not apply to is no other
        ([NONE, 7.0], [NONE, 1 / 2]),
        ([NONE, NONE], [NONE, NONE]),
    ],
)
def test_a_win_rate_is_the_share_of_the_others_that_are_beaten(scores: list[float], rates: list[float]) -> None:
    near(win_rate(torch.tensor(scores)), rates)


def test_win_rates_are_those_of_all_pairs() -> None:
    scores = torch.randint(0, 9, (41,), generator=torch.Generator().manual_seed(0)).float()
    beats = (scores[:, None] > scores).double() + (scores[:, None] == scores).double() / 2
    near(win_rate(scores), ((beats.sum(1) - 1 / 2) / 40).tolist())  # less oneself


def test_uncertainty_is_the_trained_win_rate_less_the_mean_of_the_watched_ones() -> None:
    rewards = {
        "trained": torch.tensor([10.0, 0.0, 5.0]),  # 1, 0, 1/2
        "one": torch.tensor([0.1, 0.2, 0.3]),  # 0, 1/2, 1
        "two": torch.tensor([-1.0, -1.0, -2.0]),  # 3/4, 3/4, 0
    }
    weights = {"trained": 2.0, "one": 0.0, "two": 0.0}
    near(uncertainty(rewards, weights), [1 - 3 / 8, 0 - 5 / 8, 1 / 2 - 1 / 2])
    near(uncertainty(rewards, {**weights, "trained": -2.0}), [0 - 3 / 8, 1 - 5 / 8, 1 / 2 - 1 / 2])
    near(uncertainty({**rewards, "two": torch.full((3,), NONE)}, weights), [1, -1 / 2, -1 / 2])
    near(uncertainty({**rewards, "trained": torch.tensor([10.0, NONE, 5.0])}, weights), [1 - 3 / 8, NONE, 0 - 1 / 2])
    near(
        uncertainty({**rewards, "one": torch.tensor([1, NONE, 2]), "two": torch.tensor([1, NONE, 2])}, weights),
        [1, NONE, -1 / 2],
    )


def test_of_several_trained_rewards_it_is_the_sum_that_is_compared() -> None:
    rewards = {
        "small": torch.tensor([0.0, 1.0, 0.5]),
        "large": torch.tensor([20.0, 10.0, 0.0]),
        "watched": torch.tensor([1.0, 1.0, 1.0]),
    }
    weights = {"small": 1.0, "large": 1.0, "watched": 0.0}
    near(uncertainty(rewards, weights), [1 / 2, 0, -1 / 2])  # 20, 11, 0.5
    # in standard deviations, with r = sqrt(3/2): -r, r, 0 and r, 0, -r
    near(uncertainty(rewards, weights, "gdpo"), [0, 1 / 2, -1 / 2])
    near(uncertainty({**rewards, "small": torch.full((3,), NONE)}, weights), [1 / 2, 0, -1 / 2])


@pytest.mark.parametrize(
    ("share", "chosen"),
    [(1.0, [0, 1, 2, 3, 4]), (0.6, [0, 2, 4]), (0.4, [0, 4]), (0.2, [4]), (0.01, [4])],
)
def test_the_gate_is_for_the_share_with_the_highest_uncertainty(share: float, chosen: list[int]) -> None:
    found = most_uncertain(torch.tensor([0.2, -0.3, 0.1, -0.1, 0.4]), share)
    assert found.nonzero().flatten().tolist() == chosen


def test_of_equal_ones_the_first_are_chosen_and_unknown_ones_never() -> None:
    assert most_uncertain(torch.tensor([NONE, 0.1, 0.1, 0.1, NONE]), 0.7).tolist() == [False, True, True, False, False]
    assert most_uncertain(torch.tensor([NONE, 0.1, NONE]), 1.0).tolist() == [False, True, False]
    assert not most_uncertain(torch.tensor([NONE, NONE]), 1.0).any()
