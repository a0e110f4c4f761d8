from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from flowfactory.errors import RunError
from flowfactory.rl.advantages import advantages, normalize
from flowfactory.rl.divergences import mean_kl, velocity_kl
from flowfactory.rl.groups import center, group_max, group_std, group_sum
from flowfactory.rl.losses import clipped_surrogate, is_clipped, optimality, squared_error

SCORES = st.floats(-10, 10, width=32)
Spread = Literal["group", "global"]


@st.composite
def batches(draw: st.DrawFn, labels: int = 1) -> tuple[list[Tensor], Tensor]:
    """Scores under ``labels`` labels, and groups with any ids in any order."""
    ids = draw(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=4, unique=True))
    members = [i for i in ids for _ in range(draw(st.integers(1, 5)))]
    groups = torch.tensor(draw(st.permutations(members)))
    scores = [torch.tensor(draw(st.lists(SCORES, min_size=len(groups), max_size=len(groups)))) for _ in range(labels)]
    return scores, groups


def by_hand(scores: Tensor, groups: Tensor) -> list[tuple[float, float]]:
    """(score less the mean, population standard deviation) of each sample in its group."""
    result = []
    for i, group in enumerate(groups.tolist()):
        own = [float(s) for s, g in zip(scores, groups.tolist(), strict=True) if g == group]
        mean = math.fsum(own) / len(own)
        result.append((float(scores[i]) - mean, math.sqrt(math.fsum((s - mean) ** 2 for s in own) / len(own))))
    return result


@given(batches())
def test_centring_and_spread_are_those_of_the_group(batch: tuple[list[Tensor], Tensor]) -> None:
    (scores,), groups = batch
    expected = by_hand(scores, groups)
    assert center(scores, groups).dtype == torch.float64
    assert center(scores, groups).tolist() == pytest.approx([c for c, _ in expected], abs=1e-9)
    assert group_std(scores, groups).tolist() == pytest.approx([s for _, s in expected], abs=4 * 2**-23 * 10)


@given(batches(), st.sampled_from(["group", "global"]))
def test_advantages_have_mean_zero_in_each_group(batch: tuple[list[Tensor], Tensor], spread: Spread) -> None:
    (scores,), groups = batch
    for aggregate in ("sum", "gdpo"):
        found = advantages({"a": scores}, {"a": 1.0}, groups, aggregate, spread)
        for group in torch.unique(groups):
            own = found[groups == group].double()
            assert abs(float(own.mean())) <= 1e-6 * (1 + float(own.abs().max()))


@pytest.mark.parametrize("aggregate", ["sum", "gdpo"])
@pytest.mark.parametrize("spread", ["group", "within", "global"])
def test_a_group_whose_rewards_are_all_equal_gets_exact_zeros(aggregate: Literal["sum", "gdpo"], spread: Spread) -> None:
    noisy = [0.1 + 0.2, 0.3, 0.3]  # 0.1 + 0.2 is 0.30000000000000004
    scores = torch.tensor([*noisy, 1.0, 2.0, 3.0], dtype=torch.float64)
    found = advantages({"a": scores}, {"a": 1.0}, torch.tensor([0, 0, 0, 1, 1, 1]), aggregate, spread)
    assert found[:3].tolist() == [0.0, 0.0, 0.0]
    assert float(found[3]) < -0.9
    assert float(found[5]) > 0.9
    alone = advantages({"a": scores[:3]}, {"a": 1.0}, torch.tensor([0, 0, 0]), aggregate, spread)
    assert alone.tolist() == [0.0, 0.0, 0.0]


@given(st.floats(-1e6, 1e6, width=32), st.integers(2, 9))
def test_equal_scores_give_exact_zeros_whatever_they_are(score: float, count: int) -> None:
    scores, groups = torch.full((count,), score), torch.zeros(count, dtype=torch.int64)
    assert group_std(scores, groups).tolist() == [0.0] * count
    assert advantages({"a": scores}, {"a": 1.0}, groups).tolist() == [0.0] * count


@given(st.floats(2**-10, 2**13, width=32), st.integers(1, 7))
def test_one_rounding_of_float32_is_no_difference(score: float, count: int) -> None:
    other = torch.nextafter(torch.tensor(score), torch.tensor(math.inf))
    scores = torch.stack([torch.tensor(score)] * count + [other])
    assert advantages({"a": scores}, {"a": 1.0}, torch.zeros(count + 1, dtype=torch.int64)).tolist() == [0.0] * (count + 1)


@pytest.mark.parametrize(
    ("scores", "dtype"),
    [
        ([100.0, 99.0, 98.0, 97.0], torch.bfloat16),
        ([1000.0, 999.0, 998.0, 997.0], torch.float16),
        ([0.98, 1.0, 0.98, 1.0], torch.bfloat16),
    ],
)
def test_differences_that_half_the_bits_hold_are_learned_from(scores: list[float], dtype: torch.dtype) -> None:
    assert bool((group_std(torch.tensor(scores, dtype=dtype), torch.zeros(4, dtype=torch.int64)) > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("score", [0.1, -3.7, 1000.0])
def test_a_few_roundings_are_no_spread_in_any_dtype_and_many_are(dtype: torch.dtype, score: float) -> None:
    ulp = torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(abs(score)))
    groups = torch.tensor([0, 0, 0, 0])
    counts = (4, 9) if torch.finfo(dtype).bits > 16 else (1, 3)
    few, many = (torch.tensor(score, dtype=dtype) + ulp * torch.tensor([0, 1, n, 0], dtype=dtype) for n in counts)
    assert few.dtype == dtype
    assert len(set(few.tolist())) == len({0, 1, counts[0]})
    assert advantages({"a": few}, {"a": 1.0}, groups).tolist() == [0.0] * 4
    assert float(advantages({"a": many}, {"a": 1.0}, groups).double().square().mean()) == pytest.approx(1)


@pytest.mark.parametrize("aggregate", ["sum", "gdpo"])
@pytest.mark.parametrize("spread", ["group", "global"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_large_constant_reward_takes_nothing_from_a_small_one(
    aggregate: Literal["sum", "gdpo"], spread: Spread, dtype: torch.dtype
) -> None:
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    small = torch.tensor([0.1, 0.2, 0.4, 0.3, 0.1, 0.2], dtype=dtype) / 1000
    alone = advantages({"small": small}, {"small": 1.0}, groups, aggregate, spread)
    assert float(alone.abs().min()) < 1e-6 < float(alone.abs().max())
    for constant in (1e6, -1e12, 0.0):
        rewards = {"constant": torch.full((6,), constant, dtype=dtype), "small": small}
        assert torch.equal(advantages(rewards, {"constant": 1.0, "small": 1.0}, groups, aggregate, spread), alone)


def test_a_score_beyond_float32_is_learned_from() -> None:
    scores = torch.tensor([-1e39, 1.0, 2.0, 4.0], dtype=torch.float64)
    found = advantages({"a": scores}, {"a": 1.0}, torch.tensor([0, 0, 1, 1]))
    assert found.tolist() == pytest.approx([-1, 1, -1, 1])


@given(
    batches(),
    st.sampled_from([1e-200, 1e-9, 1e3, 1e200]),
    st.sampled_from(["sum", "gdpo"]),
    st.sampled_from(["group", "global"]),
)
def test_the_size_of_the_only_rewards_weight_does_not_matter(
    batch: tuple[list[Tensor], Tensor], weight: float, aggregate: Literal["sum", "gdpo"], spread: Spread
) -> None:
    (scores,), groups = batch
    scores = (scores * 64).round()
    once = advantages({"a": scores}, {"a": 1.0}, groups, aggregate, spread)
    torch.testing.assert_close(advantages({"a": scores}, {"a": weight}, groups, aggregate, spread), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("aggregate", ["sum", "gdpo"])
def test_scores_too_large_to_add_up_are_an_error_that_names_the_reward(aggregate: Literal["sum", "gdpo"]) -> None:
    huge = torch.tensor([1.7e308, 1.6e308], dtype=torch.float64)
    said = "reward 'huge': its scores times its weight are too large to add up; scale them down"
    with pytest.raises(RunError, match=f"^{said}$"):
        advantages(
            {"fine": torch.tensor([0.0, 1.0]), "huge": huge}, {"fine": 1.0, "huge": 1.0}, torch.tensor([0, 0]), aggregate
        )


@pytest.mark.parametrize("aggregate", ["sum", "gdpo"])
def test_rewards_that_cancel_leave_exact_zeros(aggregate: Literal["sum", "gdpo"]) -> None:
    a = torch.tensor([0.1, 0.7, 0.3, 0.9])
    rewards, groups = {"a": a, "b": 3 * a.double()}, torch.tensor([0, 0, 1, 1])
    weights = {"a": 3.0, "b": -1.0} if aggregate == "sum" else {"a": 1.0, "b": -1.0}
    assert advantages(rewards, weights, groups, aggregate).tolist() == [0.0] * 4


@pytest.mark.parametrize("aggregate", ["sum", "gdpo"])
def test_rewards_that_cancel_but_for_their_own_roundings_leave_exact_zeros(aggregate: Literal["sum", "gdpo"]) -> None:
    torch.manual_seed(1)
    shares = torch.softmax(torch.randn(8, 3), 1)  # whose sum is 1 up to a rounding of float32
    groups = torch.tensor([0] * 4 + [1] * 4)
    assert len(set(shares.double().sum(1).tolist())) > 1
    scores = shares[:, 0]
    cases = [
        ({"a": scores, "b": (scores * 3) / 3}, {"a": 1.0, "b": -1.0}),
        ({"a": scores, "b": 1e3 - scores}, {"a": 1.0, "b": 1.0}),
        ({"a": scores, "b": (scores * 3) / 3, "c": torch.full((8,), 1e6)}, {"a": 1.0, "b": -1.0, "c": 1.0}),
    ]
    if aggregate == "sum":  # normalised one by one, the three are no constant sum
        cases.append(({name: shares[:, i] for i, name in enumerate("abc")}, dict.fromkeys("abc", 1.0)))
    for rewards, weights in cases:
        assert advantages(rewards, weights, groups, aggregate).tolist() == [0.0] * 8


def test_a_reward_that_weighs_two_equal_sums_is_constant() -> None:
    # 0.1 * 3 and 0.3 * 1 differ in the last bit
    rewards = {"a": torch.tensor([3.0, 0.0], dtype=torch.float64), "b": torch.tensor([0.0, 1.0], dtype=torch.float64)}
    assert 0.1 * 3 != 0.3
    assert advantages(rewards, {"a": 0.1, "b": 0.3}, torch.tensor([0, 0])).tolist() == [0.0, 0.0]


def test_one_outlying_group_does_not_make_another_constant() -> None:
    rewards = torch.tensor([1e9, 2e9, 1.0, 3.0], dtype=torch.float64)
    advantage = normalize(rewards, torch.tensor([0, 0, 1, 1]))
    assert advantage.tolist() == pytest.approx([-1, 1, -1, 1], abs=1e-6)


def test_the_group_divides_by_its_own_spread_or_by_that_of_all_that_are_centred() -> None:
    scores, groups = torch.tensor([0.0, 2.0, 0.0, 6.0, 5.0, 5.0]), torch.tensor([4, 4, 9, 9, 2, 2])
    assert advantages({"a": scores}, {"a": 1.0}, groups, spread="group").tolist() == pytest.approx([-1, 1, -1, 1, 0, 0])
    overall = math.sqrt((1 + 1 + 9 + 9 + 0 + 0) / 6)
    expected = [-1 / overall, 1 / overall, -3 / overall, 3 / overall, 0, 0]
    assert advantages({"a": scores}, {"a": 1.0}, groups, spread="within").tolist() == pytest.approx(expected)


@pytest.mark.parametrize("aggregate", ["sum", "gdpo"])
def test_the_global_spread_is_that_of_all_raw_rewards(aggregate: Any) -> None:
    scores, groups = torch.tensor([0.0, 1.0, 10.0, 11.0]), torch.tensor([0, 0, 1, 1])
    std = math.sqrt(((5.5**2 + 4.5**2) * 2) / 4)
    if aggregate == "sum":
        expected = [-0.5 / std, 0.5 / std, -0.5 / std, 0.5 / std]
        assert expected[1] == pytest.approx(0.0995, abs=5e-5)
    else:
        expected = [-1.0, 1.0, -1.0, 1.0]  # whitened once more
    found = advantages({"a": scores}, {"a": 1.0}, groups, aggregate, "global")
    assert found.tolist() == pytest.approx(expected)
    assert normalize(scores, groups, "global").tolist() == pytest.approx([-0.5 / std, 0.5 / std, -0.5 / std, 0.5 / std])


def test_the_global_spread_of_a_sum_is_that_of_the_weighted_sum() -> None:
    groups = torch.tensor([0, 0, 1, 1])
    a, b = torch.tensor([0.0, 1.0, 10.0, 11.0]), torch.tensor([3.0, 1.0, 0.0, 5.0])
    total = a.double() + 0.5 * b.double()
    centred = total - torch.tensor([total[:2].mean()] * 2 + [total[2:].mean()] * 2)
    expected = (centred / total.std(correction=0)).tolist()
    found = advantages({"a": a, "b": b}, {"a": 1.0, "b": 0.5}, groups, spread="global")
    assert found.tolist() == pytest.approx(expected)


def test_a_reward_that_does_not_apply_adds_nothing_to_the_global_spread() -> None:
    groups = torch.tensor([0, 0, 1, 1])
    a, b = torch.tensor([0.0, 1.0, 10.0, 11.0]), torch.tensor([3.0, 3.0, math.nan, math.nan])
    found = advantages({"a": a, "b": b}, {"a": 1.0, "b": 1.0}, groups, spread="global")
    assert found.tolist() == advantages({"a": a}, {"a": 1.0}, groups, spread="global").tolist()


@pytest.mark.parametrize("aggregate", ["sum", "gdpo"])
@pytest.mark.parametrize("spread", ["group", "within", "global"])
def test_groups_of_too_low_a_range_have_no_advantage(aggregate: Any, spread: Any) -> None:
    scores, groups = torch.tensor([0.0, 0.2, 0.1, 1.0, 3.0, 2.0]), torch.tensor([7, 7, 7, 1, 1, 1])
    found = advantages({"a": scores}, {"a": 0.5}, groups, aggregate, spread, min_range=0.1001)
    assert found[:3].tolist() == [0, 0, 0]
    assert found[3] < 0 < found[4]
    kept = advantages({"a": scores}, {"a": 0.5}, groups, aggregate, spread, min_range=0.0999)
    assert kept[:2].tolist() != [0, 0]


def test_small_differences_of_large_rewards_survive() -> None:
    # float32 would round the mean of these away
    scores = torch.tensor([16_777_216.0, 16_777_218.0, 16_777_220.0])
    found = normalize(scores, torch.zeros(3, dtype=torch.int64), "within")
    assert center(scores, torch.zeros(3, dtype=torch.int64)).tolist() == [-2.0, 0.0, 2.0]
    assert found.dtype == torch.float64
    scores = torch.tensor([1000.0, 1000.001, 1000.002, 1000.003], dtype=torch.float64)
    own = normalize(scores, torch.zeros(4, dtype=torch.int64)).tolist()
    assert own == pytest.approx([-3 / math.sqrt(5), -1 / math.sqrt(5), 1 / math.sqrt(5), 3 / math.sqrt(5)], rel=1e-4)


def test_gdpo_does_not_care_for_a_rewards_scale_and_the_sum_does() -> None:
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    a = torch.tensor([0.0, 1.0, 5.0, 2.0, 2.5, 1.0])
    b = torch.tensor([3.0, 1.0, 0.0, 0.5, 2.0, 2.5])
    for spread in ("group", "within", "global"):
        found = [advantages({"a": a, "b": s * b}, {"a": 1, "b": 1}, groups, "gdpo", spread) for s in (1.0, 100.0)]
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)
    found = [advantages({"a": a, "b": s * b}, {"a": 1, "b": 1}, groups, "sum") for s in (1.0, 100.0)]
    assert float((found[0] - found[1]).abs().max()) > 0.5


def test_gdpo_normalises_weighs_adds_and_whitens() -> None:
    groups = torch.tensor([0, 0, 0, 0])
    a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([10.0, 30.0, 10.0, 30.0])
    # normalised: [-1, -1, 1, 1] and [-1, 1, -1, 1]; 1 and 0.5 of them: [-1.5, -0.5, 0.5, 1.5], of variance 1.25
    expected = [value / math.sqrt(1.25) for value in (-1.5, -0.5, 0.5, 1.5)]
    assert advantages({"a": a, "b": b}, {"a": 1.0, "b": 0.5}, groups, "gdpo").tolist() == pytest.approx(expected)


@given(batches(labels=2), st.sampled_from(["sum", "gdpo"]), st.sampled_from(["group", "global"]))
def test_a_weight_of_zero_has_no_effect(
    batch: tuple[list[Tensor], Tensor], aggregate: Literal["sum", "gdpo"], spread: Spread
) -> None:
    (a, b), groups = batch
    alone = advantages({"a": a}, {"a": 2.0}, groups, aggregate, spread)
    assert torch.equal(advantages({"a": a, "b": b}, {"a": 2.0, "b": 0.0}, groups, aggregate, spread), alone)
    poisoned = torch.full_like(b, math.nan)
    assert torch.equal(advantages({"a": a, "b": poisoned}, {"a": 2.0, "b": 0.0}, groups, aggregate, spread), alone)


@given(batches(), st.floats(0.1, 3))
def test_the_clip_bounds_and_leaves_the_rest(batch: tuple[list[Tensor], Tensor], clip: float) -> None:
    (scores,), groups = batch
    free = advantages({"a": scores}, {"a": 1.0}, groups)
    held = advantages({"a": scores}, {"a": 1.0}, groups, clip=clip)
    bound = float(torch.tensor(clip))
    assert float(held.abs().max()) <= bound
    inside = free.abs() < bound
    assert torch.equal(held[inside], free[inside])
    assert torch.equal(held.sign(), free.sign())


@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(batch: tuple[list[Tensor], Tensor], shuffle: object) -> None:
    (scores,), groups = batch
    order = list(range(len(groups)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    whole = advantages({"a": scores}, {"a": 1.0}, groups)
    torch.testing.assert_close(advantages({"a": scores[order]}, {"a": 1.0}, groups[order]), whole[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [  # c = 0.2: -min(r A, clip(r) A) and its derivative by r
        (1.0, 2.0, -2.0, -2.0, 0.0),
        (1.1, 2.0, -2.2, -2.0, 0.0),
        (1.3, 2.0, -2.4, 0.0, 1.0),
        (0.7, 2.0, -1.4, -2.0, 0.0),
        (1.0, -2.0, 2.0, 2.0, 0.0),
        (0.9, -2.0, 1.8, 2.0, 0.0),
        (0.7, -2.0, 1.6, 0.0, 1.0),
        (1.3, -2.0, 2.6, 2.0, 0.0),
        (1.3, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_surrogate_and_its_gradient_on_each_side(
    ratio: float, advantage: float, loss: float, gradient: float, clipped: float
) -> None:
    r = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([advantage], dtype=torch.float64)
    value = clipped_surrogate(r, a, 0.2)
    assert float(value.detach()) == pytest.approx(loss, abs=1e-12)
    assert float(torch.autograd.grad(value.sum(), r)[0]) == pytest.approx(gradient, abs=1e-12)
    assert is_clipped(r, a, 0.2).tolist() == [clipped]


@given(
    st.floats(0.3, 2).filter(lambda r: min(abs(r - 0.8), abs(r - 1.2)) > 1e-9),
    st.floats(-5, 5).filter(lambda a: abs(a) > 1e-6),
)
def test_clipped_is_just_where_the_gradient_is_zero(ratio: float, advantage: float) -> None:
    r = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([advantage], dtype=torch.float64)
    gradient = torch.autograd.grad(clipped_surrogate(r, a, 0.2).sum(), r)[0]
    assert bool(is_clipped(r, a, 0.2)) == (float(gradient) == 0)


def test_at_a_ratio_of_one_the_gradient_is_the_policy_gradient() -> None:
    log_prob = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    a = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64)
    clipped_surrogate(torch.exp(log_prob), a, 1e-4).sum().backward()  # type: ignore[no-untyped-call]
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == [-1.5, 0.5, 0.0]


@given(st.lists(st.floats(-3, 3), min_size=12, max_size=12), st.floats(0.1, 3), st.floats(0.1, 3))
def test_the_divergence_of_two_steps_is_the_kl_of_two_normals(values: list[float], one: float, two: float) -> None:
    mean, reference = torch.tensor(values, dtype=torch.float64).reshape(2, 2, 3)
    std = torch.tensor([[one], [two]], dtype=torch.float64)
    expected = kl_divergence(Normal(mean, std), Normal(reference, std)).mean(1)
    torch.testing.assert_close(mean_kl(mean, reference, std), expected)


def test_the_divergence_of_two_velocities_is_their_mean_squared_difference() -> None:
    velocity, reference = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 4.0]]])
    assert velocity_kl(velocity, reference).tolist() == pytest.approx([(0 + 4 + 9 + 0) / 4])


def test_the_divergences_pull_towards_the_reference() -> None:
    x = torch.tensor([[2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, 2, dtype=torch.float64)
    (pull,) = torch.autograd.grad(mean_kl(x, zero, torch.tensor([[0.5]], dtype=torch.float64)).sum(), x)
    assert pull.tolist() == [[4.0, -2.0]]  # x / std² / 2 elements
    (pull,) = torch.autograd.grad(velocity_kl(x, zero).sum(), x)
    assert pull.tolist() == [[2.0, -1.0]]  # 2 x / 2 elements


def test_the_squared_error_is_a_mean_over_elements() -> None:
    estimate, target = torch.tensor([[[1.0], [2.0]], [[3.0], [5.0]]]), torch.tensor([[[0.0], [0.0]], [[3.0], [1.0]]])
    assert squared_error(estimate, target).tolist() == [(1 + 4) / 2, (0 + 16) / 2]
    # in units of the mean absolute errors 1.5 and 2
    assert squared_error(estimate, target, scaled=True).tolist() == pytest.approx([2.5 / 1.5, 8 / 2])


@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6), st.booleans())
def test_the_scale_of_the_squared_error_has_no_gradient(values: list[float], scaled: bool) -> None:
    estimate = torch.tensor(values, requires_grad=True).reshape(2, 3)
    target = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.25, -3.0]])
    (gradient,) = torch.autograd.grad(squared_error(estimate, target, scaled).sum(), estimate)
    expected = []
    for row, goal in zip(torch.tensor(values).double().reshape(2, 3).tolist(), target.double().tolist(), strict=True):
        errors = [a - b for a, b in zip(row, goal, strict=True)]
        scale = max(1e-5, math.fsum(map(abs, errors)) / 3) if scaled else 1.0
        expected.append([2 * error / 3 / scale for error in errors])
    torch.testing.assert_close(gradient.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-6)


def test_an_error_of_nothing_is_scaled_to_nothing() -> None:
    x = torch.ones(1, 4, requires_grad=True)
    error = squared_error(x, torch.ones(1, 4), scaled=True)
    assert error.tolist() == [0.0]
    assert torch.autograd.grad(error.sum(), x)[0].tolist() == [[0.0] * 4]
    # below 1e-5 the unit is 1e-5: (1e-6)² / 1e-5
    assert squared_error(torch.full((1, 4), 1e-6), torch.zeros(1, 4), scaled=True).tolist() == pytest.approx([1e-7])


def test_the_squared_error_of_half_precision_is_computed_in_float32() -> None:
    estimate = torch.full((1, 2048), 1.0).bfloat16()
    assert squared_error(estimate, torch.full((1, 2048), 0.999)).tolist() == pytest.approx([1e-6], rel=1e-3)


@pytest.mark.parametrize(
    ("advantage", "share"), [(-7.0, 0.0), (-5.0, 0.0), (-2.5, 0.25), (0.0, 0.5), (1.0, 0.6), (5.0, 1.0), (9.0, 1.0)]
)
def test_optimality_is_a_half_at_zero_and_whole_at_the_maximum(advantage: float, share: float) -> None:
    assert optimality(torch.tensor([advantage]), 5.0).tolist() == pytest.approx([share])


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=8), st.floats(0.1, 10))
def test_optimality_of_opposite_advantages_adds_up_to_one(values: list[float], maximum: float) -> None:
    advantage = torch.tensor(values, dtype=torch.float64)
    both = optimality(advantage, maximum) + optimality(-advantage, maximum)
    assert both.tolist() == pytest.approx([1.0] * len(values), abs=1e-12)
    assert bool(((optimality(advantage, maximum) - 0.5) * advantage >= 0).all())


@given(batches())
def test_a_sum_over_the_group_is_every_members(batch: tuple[list[Tensor], Tensor]) -> None:
    (scores,), groups = batch
    found = group_sum(scores.double(), groups)
    ids = groups.tolist()
    expected = [math.fsum(float(s) for s, g in zip(scores, ids, strict=True) if g == group) for group in ids]
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_the_gradient_of_a_sum_over_the_group_reaches_every_member_of_it() -> None:
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(group_sum(values, torch.tensor([5, -1, 5]))[0], values)
    assert gradient.tolist() == [1.0, 0.0, 1.0]


def test_the_largest_of_a_group_is_every_members() -> None:
    values = torch.tensor([1.0, -3.0, 5.0, -2.0, 0.5])
    assert group_max(values, torch.tensor([7, 2, 7, 2, 9])).tolist() == [5.0, -2.0, 5.0, -2.0, 0.5]


def test_a_ratio_may_be_bounded_otherwise_above_than_below() -> None:
    ratio = torch.tensor([0.7, 0.85, 1.15, 1.3, 0.7, 1.3], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([-1.0, -1.0, 2.0, 2.0, 2.0, -1.0], dtype=torch.float64)
    loss = clipped_surrogate(ratio, advantage, (0.1, 0.2))
    assert loss.tolist() == pytest.approx([0.9, 0.9, -2.3, -2.4, -1.4, 1.3])
    (gradient,) = torch.autograd.grad(loss.sum(), ratio)
    assert gradient.tolist() == [0, 0, -2, 0, -2, 1]
    assert is_clipped(ratio, advantage, (0.1, 0.2)).tolist() == [1, 1, 0, 1, 0, 0]
    both = clipped_surrogate(ratio, advantage, 0.1)
    assert torch.equal(both, clipped_surrogate(ratio, advantage, (0.1, 0.1)))
