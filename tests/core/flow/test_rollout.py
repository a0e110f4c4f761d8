from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowfactory import Canvas, flow
from flowfactory.flow.dynamics import ODE, FlowSDE, FlowSDEConfig
from flowfactory.flow.rollout import LOG_ROOT_TAU
from flowfactory.types import Conditions, Dynamics, NoiseKey, SamplingPlan, Step

SHAPE = (2, 3)
KEYS = tuple(NoiseKey(prompt, member) for prompt in (0, 5) for member in range(3))


def plan_with(**changes: Any) -> SamplingPlan:
    plan = SamplingPlan(4, Canvas(8, 8), 1.0, FlowSDEConfig().build("dynamics"), seed=3, iteration=2, keys=KEYS)
    return replace(plan, **changes)


def conditions(count: int) -> Conditions:
    return Conditions(({},) * count)


def shrink(latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """0.3 x + 0.2 sigma."""
    return 0.3 * latents + 0.2 * flow.expand_sigma(sigma, latents)


def test_the_noise_of_a_sample_does_not_depend_on_who_it_is_drawn_with() -> None:
    plan = plan_with()
    whole = flow.noise(plan, SHAPE, 1)
    for index in ([0], [5, 2], [4, 3, 2, 1, 0]):
        assert torch.equal(flow.noise(plan.rows(index), SHAPE, 1), whole[index])


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"iteration": 3},
        {"keys": tuple(NoiseKey(key.prompt + 1, key.member) for key in KEYS)},
        {"keys": tuple(NoiseKey(key.prompt, key.member + 10) for key in KEYS)},
    ],
    ids=["seed", "iteration", "prompt", "member"],
)
def test_noise_differs_with_every_part_of_its_key(other: dict[str, Any]) -> None:
    one, two = flow.noise(plan_with(), SHAPE), flow.noise(plan_with(**other), SHAPE)
    assert bool((one != two).all())


def test_noise_differs_with_the_step_and_between_samples() -> None:
    plan = plan_with()
    drawn = torch.cat([flow.noise(plan, SHAPE, step) for step in (flow.INITIAL, 0, 1, 2)])
    assert len({tuple(sample.flatten().tolist()) for sample in drawn}) == 4 * len(KEYS)


def test_noise_does_not_move_the_global_random_state() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    flow.noise(plan_with(), SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_standard_normal() -> None:
    keys = tuple(NoiseKey(prompt, member) for prompt in range(20) for member in range(50))
    drawn = flow.noise(plan_with(keys=keys), (10,)).flatten().double()
    # the mean of 10,000 standard normals is within 5 / 100, their variance within 5 sqrt(2) / 100, five sigma each
    assert abs(float(drawn.mean())) < 0.05
    assert abs(float(drawn.var()) - 1) < 0.0708
    between = flow.noise(plan_with(keys=keys), (10,)).double().mean(1)
    assert abs(float(between.var()) - 0.1) < 0.1 * 5 * math.sqrt(2 / 1000)  # samples are independent


def test_the_key_of_a_generator_is_taken_whole() -> None:
    firsts = [
        float(torch.rand(1, generator=flow.generator(*key))) for key in [("a", 1), ("a", 11), ("a", 1, 1), ("a1",), (1, "a")]
    ]
    assert len(set(firsts)) == 5
    assert firsts[0] == float(torch.rand(1, generator=flow.generator("a", 1)))


@given(
    x=st.lists(st.floats(-4, 4), min_size=6, max_size=6),
    mean=st.lists(st.floats(-4, 4), min_size=6, max_size=6),
    std=st.floats(0.05, 3),
)
def test_log_density_is_the_mean_of_the_normals(x: list[float], mean: list[float], std: float) -> None:
    at, centre = torch.tensor(x).reshape(2, 3), torch.tensor(mean).reshape(2, 3)
    normal: Any = torch.distributions.Normal(centre.double(), float(torch.tensor(std)))
    expected = normal.log_prob(at.double()).mean(1)
    found = flow.log_normal(at, centre, torch.full((2, 1), std))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_log_density_does_not_grow_with_resolution() -> None:
    small = flow.log_normal(torch.ones(1, 4), torch.zeros(1, 4), torch.ones(1, 1))
    large = flow.log_normal(torch.ones(1, 4000), torch.zeros(1, 4000), torch.ones(1, 1))
    assert float(small) == pytest.approx(float(large), abs=1e-5)
    assert float(small) == pytest.approx(-0.5 - 0.5 * math.log(2 * math.pi), abs=1e-6)


def test_an_euler_step_of_a_straight_path_arrives() -> None:
    clean, noise = torch.randn(2, 3, generator=flow.generator(1)), torch.randn(2, 3, generator=flow.generator(2))
    half = flow.euler(noise - clean, noise, torch.tensor(1.0), torch.tensor(0.5))
    torch.testing.assert_close(half, 0.5 * clean + 0.5 * noise)
    torch.testing.assert_close(flow.euler(noise - clean, half, torch.tensor(0.5), torch.tensor(0.0)), clean, rtol=0, atol=1e-6)


def test_rollout_without_stochastic_steps_is_euler() -> None:
    sigmas = [1.0, 0.7, 0.2, 0.0]
    start = flow.noise(plan_with(), SHAPE)
    latents, steps = flow.rollout(shrink, start, torch.tensor(sigmas), conditions(6), plan_with(dynamics=ODE()))
    expected = start.double()
    for now, then in itertools.pairwise(sigmas):
        expected = expected + (then - now) * (0.3 * expected + 0.2 * now)
    assert steps == ()
    torch.testing.assert_close(latents.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_stochastic_step_adds_its_own_noise_to_its_mean() -> None:
    plan = plan_with(stochastic=frozenset({1}), recorded=frozenset({1}))
    start = flow.noise(plan, SHAPE)
    _, (step,) = flow.rollout(shrink, start, torch.tensor([1.0, 0.6, 0.3, 0.0]), conditions(6), plan)
    x = start.double() - 0.4 * (0.3 * start.double() + 0.2)  # the ODE's first step
    torch.testing.assert_close(step.latents.double(), x, rtol=1e-5, atol=1e-6)
    spread = 0.7 * math.sqrt(0.6 / 0.4)
    v = 0.3 * x + 0.2 * 0.6
    mean = x + (v + spread**2 / (2 * 0.6) * (x + (1 - 0.6) * v)) * -0.3
    assert step.next_latents is not None
    expected = mean + spread * math.sqrt(0.3) * flow.noise(plan, SHAPE, 1).double()
    torch.testing.assert_close(step.next_latents.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recorded", [frozenset[int](), frozenset({0}), frozenset({0, 2})])
def test_just_what_the_plan_records_is_recorded(recorded: frozenset[int]) -> None:
    plan = plan_with(stochastic=frozenset({0, 1, 2}), recorded=recorded)
    sigmas = torch.linspace(1, 0, 5)
    _, steps = flow.rollout(shrink, flow.noise(plan, SHAPE), sigmas, conditions(6), plan)
    assert [float(step.sigma[0]) for step in steps] == [float(sigmas[i]) for i in sorted(recorded)]
    assert all(step.next_sigma is not None and step.log_prob is not None for step in steps)


def test_recording_changes_nothing_of_what_is_drawn() -> None:
    plan = plan_with(stochastic=frozenset({0, 2}))
    sigmas, start = torch.linspace(1, 0, 5), flow.noise(plan, SHAPE)
    one, _ = flow.rollout(shrink, start, sigmas, conditions(6), plan)
    two, _ = flow.rollout(shrink, start, sigmas, conditions(6), replace(plan, recorded=frozenset({0, 2})))
    assert torch.equal(one, two)


def test_consecutive_recorded_steps_join() -> None:
    plan = plan_with(stochastic=frozenset({0, 1, 2}), recorded=frozenset({0, 1, 2}))
    _, steps = flow.rollout(shrink, flow.noise(plan, SHAPE), torch.linspace(1, 0, 5), conditions(6), plan)
    for one, two in itertools.pairwise(steps):
        assert one.next_latents is not None
        assert one.next_sigma is not None
        assert torch.equal(one.next_latents, two.latents)
        assert torch.equal(one.next_sigma, two.sigma)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_replay_sees_what_sampling_saw_whatever_the_storage_dtype(dtype: torch.dtype) -> None:
    plan = plan_with(stochastic=frozenset({0, 1}), recorded=frozenset({0, 1}))
    start = flow.noise(plan, SHAPE).to(dtype)
    latents, steps = flow.rollout(shrink, start, torch.linspace(1, 0, 5), conditions(6), plan)
    assert latents.dtype == dtype
    for step in steps:
        assert step.next_latents is not None
        assert step.log_prob is not None
        assert step.next_latents.dtype == dtype
        assert step.log_prob.dtype == torch.float32
        replayed = flow.evaluate(shrink(step.latents, step.sigma, step.conditions, 1.0), step)
        assert replayed.log_prob is not None
        assert torch.equal(replayed.log_prob, step.log_prob)
        assert replayed.mean is not None
        assert replayed.std is not None
        # the density of what is stored, not of what it was rounded from
        normal: Any = torch.distributions.Normal(replayed.mean.double(), replayed.std.double())
        stored = normal.log_prob(step.next_latents.double()).flatten(1).mean(1)
        torch.testing.assert_close(step.log_prob.double(), stored, rtol=1e-5, atol=1e-5)


def test_a_step_without_a_next_one_is_asked_for_its_velocity_alone() -> None:
    step = Step(torch.ones(2, 3).bfloat16(), torch.tensor([0.5, 0.2]), conditions(2), 1.0, ODE())
    found = flow.evaluate(torch.ones(2, 3).bfloat16(), step)
    assert found.velocity.dtype == torch.float32
    assert (found.mean, found.std, found.log_prob) == (None, None, None)


@pytest.mark.parametrize("dynamics", [ODE(), FlowSDEConfig().build("dynamics")])
def test_a_recorded_step_of_the_ode_has_no_next_latents_and_no_density(dynamics: Dynamics) -> None:
    plan = plan_with(dynamics=dynamics, recorded=frozenset({2}), stochastic=frozenset())
    _, (step,) = flow.rollout(shrink, flow.noise(plan, SHAPE), torch.linspace(1, 0, 5), conditions(6), plan)
    assert (step.next_latents, step.next_sigma, step.log_prob) == (None, None, None)
    assert float(step.sigma[0]) == 0.5


@given(
    x=st.floats(-2, 2),
    arrived=st.floats(-2, 2),
    p=st.floats(-1, 1),
    q=st.floats(-1, 1),
    sigma=st.floats(0.1, 0.95),
    part=st.floats(0.2, 0.8),
    level=st.floats(0.2, 1.2),
)
def test_the_gradient_of_the_log_density_is_that_of_the_formula_in_float64(
    x: float, arrived: float, p: float, q: float, sigma: float, part: float, level: float
) -> None:
    then = sigma * part
    dynamics = FlowSDEConfig(noise_level=level).build("dynamics")
    weights = torch.tensor([p, q], requires_grad=True)
    latents, at = torch.tensor([[x, 2 * x]]), torch.tensor([sigma])
    velocity = weights[0] * latents + weights[1] * flow.expand_sigma(at, latents)
    step = Step(latents, at, conditions(1), 1.0, dynamics, torch.tensor([then]), torch.tensor([[arrived, -arrived]]))
    found = flow.evaluate(velocity, step)
    assert found.log_prob is not None
    (gradient,) = torch.autograd.grad(found.log_prob.sum(), weights)

    exact = torch.tensor([p, q], dtype=torch.float64, requires_grad=True)
    start = torch.tensor([x, 2 * x], dtype=torch.float64)
    v = exact[0] * start + exact[1] * sigma
    spread = level * math.sqrt(sigma / (1 - sigma))
    mean = start + (v + spread**2 / (2 * sigma) * (start + (1 - sigma) * v)) * (then - sigma)
    std = spread * math.sqrt(sigma - then)
    end = torch.tensor([arrived, -arrived], dtype=torch.float64)
    density = (-((end - mean) ** 2) / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)).mean()
    (expected,) = torch.autograd.grad(density, exact)
    assert float(found.log_prob.detach()) == pytest.approx(float(density.detach()), rel=1e-4, abs=1e-3)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-3 * (1 + float(expected.abs().max())))


def test_dynamics_are_told_apart_by_what_they_promise() -> None:
    assert isinstance(plan_with().dynamics, FlowSDE)
    assert plan_with().dynamics.stochastic
    assert not ODE().stochastic


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9))
def test_parts_are_asked_once_each_and_come_back_in_order(kinds: list[str]) -> None:
    asked: list[list[int]] = []

    def velocity(rows: Sequence[int], kind: Hashable) -> Tensor:
        assert {kinds[row] for row in rows} == {kind}
        asked.append(list(rows))
        return torch.tensor([[10.0 * row] for row in rows])

    result = flow.forward_by_kind(kinds, velocity)
    assert result.flatten().tolist() == [10.0 * row for row in range(len(kinds))]
    assert len(asked) == len(set(kinds))
    assert all(len({kinds[row] for row in rows}) == 1 for rows in asked)


def test_parts_keep_their_gradients() -> None:
    weight = torch.ones(4, requires_grad=True)
    result = flow.forward_by_kind(
        "abab", lambda rows, _: weight[torch.tensor(list(rows))] * torch.tensor([row + 1.0 for row in rows])
    )
    assert torch.autograd.grad(result.sum(), weight)[0].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_latents_rest_in_the_dtype_the_plan_says() -> None:
    plan = replace(plan_with(stochastic={0, 1}, recorded={0, 1}), storage=torch.bfloat16)
    latents, steps = flow.rollout(shrink, flow.noise(plan, SHAPE), torch.linspace(1, 0, 5), conditions(6), plan)
    assert latents.dtype == torch.bfloat16
    for step in steps:
        assert (step.latents.dtype, step.next_latents.dtype) == (torch.bfloat16, torch.bfloat16)
        again = flow.evaluate(shrink(step.latents, step.sigma, step.conditions, 1.0), step)
        assert torch.equal(again.log_prob, step.log_prob), "replay does not see what sampling saw"


def test_recorded_steps_are_drawn_with_a_graph_for_whoever_keeps_it_and_nobody_else() -> None:
    weight = torch.tensor(0.3, requires_grad=True)

    def scaled(latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        return weight * latents + 0.2 * flow.expand_sigma(sigma, latents)

    plan = plan_with(stochastic=frozenset({0, 2}), recorded=frozenset({0, 2}))
    start, sigmas = flow.noise(plan, SHAPE), torch.linspace(1, 0, 5)
    kept: list[tuple[Step, Any]] = []
    with torch.no_grad():
        plain = flow.rollout(scaled, start, sigmas, conditions(len(KEYS)), plan)
        latents, steps = flow.rollout(
            scaled, start, sigmas, conditions(len(KEYS)), replace(plan, keep_graph=lambda *given: kept.append(given))
        )
    assert torch.equal(latents, plain[0])
    assert [step.latents.data_ptr() for step, _ in kept] == [step.latents.data_ptr() for step in steps]
    for step, other, (_, found) in zip(steps, plain[1], kept, strict=True):
        assert step.log_prob is not None
        assert other.log_prob is not None
        assert not step.log_prob.requires_grad
        assert torch.equal(step.log_prob, other.log_prob)
        replayed = flow.evaluate(scaled(step.latents, step.sigma, step.conditions, 1.0), step)
        assert replayed.log_prob is not None
        gradients = [torch.autograd.grad(each.log_prob.sum(), weight)[0] for each in (found, replayed)]
        assert torch.equal(*gradients)
        assert float(gradients[0]) != 0


def test_the_constant_of_densities_is_what_float32_has() -> None:
    assert 0.5 * float(torch.log(torch.tensor(2 * torch.pi))) == LOG_ROOT_TAU
