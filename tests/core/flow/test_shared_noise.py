"""Groups that start from one noise, and those whose first steps are taken once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowfactory import Canvas, Prompt, flow
from flowfactory.data.batches import make_batch
from flowfactory.flow.dynamics import FlowSDEConfig
from flowfactory.training.plans import shared_starts
from flowfactory.types import Conditions, SamplingPlan, Step

SHAPE = (2, 3)
SIZE = 3
# the first prompt comes twice in the iteration
KEYS = make_batch([Prompt("a", 0), Prompt("b", 1), Prompt("a", 0)], SIZE).keys
GROUPS = [range(start, start + SIZE) for start in range(0, len(KEYS), SIZE)]
SIGMAS = torch.linspace(1, 0, 6)


def plan_with(first: int = 2, **changes: Any) -> SamplingPlan:
    """Five steps, of which ``first`` is stochastic, with a shared start."""
    plan = SamplingPlan(5, Canvas(8, 8), 1.0, FlowSDEConfig().build("dynamics"), seed=3, iteration=2, keys=KEYS)
    window = frozenset({first})
    shared = replace(plan, starts=shared_starts(KEYS, SIZE), shares_prefix=True, stochastic=window, recorded=window)
    return replace(shared, **changes)


class Counting:
    """A velocity that counts the samples of each of its calls."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        self.rows.append(len(x))
        assert len(conditions) == len(x)
        return torch.tanh(x) * 0.3 + conditions.stack("length")[:, None, None] * flow.expand_sigma(sigma, x)


def draw(plan: SamplingPlan, velocity: Any = None) -> tuple[Tensor, tuple[Step, ...]]:
    entries = tuple({"length": torch.tensor(1.0 + key.prompt)} for key in plan.keys)
    return flow.rollout(velocity or Counting(), flow.noise(plan, SHAPE), SIGMAS, Conditions(entries), plan)


def test_members_of_a_group_start_alike_and_no_two_groups_do() -> None:
    start = flow.noise(plan_with(), SHAPE)
    assert all(torch.equal(start[row], start[group[0]]) for group in GROUPS for row in group)
    firsts = start[[group[0] for group in GROUPS]].flatten(1)
    assert len(firsts.unique(dim=0)) == len(GROUPS), "a prompt that comes twice has two groups"


def test_the_noise_of_a_step_stays_each_member_s_own() -> None:
    shared, own = plan_with(), plan_with(starts=())
    assert torch.equal(flow.noise(shared, SHAPE, 2), flow.noise(own, SHAPE, 2))
    assert len(flow.noise(shared, SHAPE, 2).flatten(1).unique(dim=0)) == len(KEYS)
    latents, _ = draw(shared)
    assert len(latents.flatten(1).unique(dim=0)) == len(KEYS)


@pytest.mark.parametrize("change", [{"seed": 4}, {"iteration": 3}])
def test_a_shared_start_differs_with_seed_and_iteration(change: dict[str, int]) -> None:
    assert bool((flow.noise(plan_with(), SHAPE) != flow.noise(plan_with(**change), SHAPE)).all())


@pytest.mark.parametrize("first", [0, 1, 2, 4])
def test_a_prefix_is_drawn_once_a_group_and_changes_nothing_of_what_is_drawn(first: int) -> None:
    counting, plan = Counting(), plan_with(first)
    latents, (step,) = draw(plan, counting)
    assert counting.rows == [len(GROUPS)] * first + [len(KEYS)] * (5 - first)
    whole, (other,) = draw(replace(plan, shares_prefix=False))
    assert torch.equal(latents, whole)
    for one, two in ((step.latents, other.latents), (step.next_latents, other.next_latents), (step.log_prob, other.log_prob)):
        assert one is not None
        assert two is not None
        assert torch.equal(one, two)
    assert all(torch.equal(step.latents[row], step.latents[group[0]]) for group in GROUPS for row in group)


@given(st.permutations(range(len(KEYS))), st.lists(st.integers(1, len(KEYS) - 1), max_size=3, unique=True))
def test_samples_are_the_same_in_whatever_parts_and_order_they_are_drawn(order: Sequence[int], cuts: list[int]) -> None:
    plan = plan_with()
    whole, (recorded,) = draw(plan)
    bounds = [0, *sorted(cuts), len(KEYS)]
    for start, stop in pairwise(bounds):
        rows = list(order[start:stop])
        part, (step,) = draw(plan.rows(rows))
        assert torch.equal(part, whole[rows])
        assert torch.equal(step.latents, recorded.latents[rows])
        assert step.log_prob is not None
        assert recorded.log_prob is not None
        assert torch.equal(step.log_prob, recorded.log_prob[rows])


def test_a_prefix_ends_before_a_step_that_is_recorded() -> None:
    counting, plan = Counting(), plan_with(3)
    _, steps = draw(replace(plan, recorded=frozenset({1, 4})), counting)
    assert counting.rows == [len(GROUPS)] + [len(KEYS)] * 4
    assert [len(step.latents) for step in steps] == [len(KEYS)] * 2


def test_without_a_stochastic_step_everything_is_a_prefix() -> None:
    counting = Counting()
    latents, _ = draw(plan_with(stochastic=frozenset(), recorded=frozenset()), counting)
    assert counting.rows == [len(GROUPS)] * 5
    assert all(torch.equal(latents[row], latents[group[0]]) for group in GROUPS for row in group)


@pytest.mark.parametrize(("first", "calls"), [(0, 0), (2, 1)])
def test_a_model_hears_of_the_branch_if_there_is_one(first: int, calls: int) -> None:
    heard, plan = [], plan_with(first)
    entries = tuple({"length": torch.tensor(1.0)} for _ in KEYS)
    flow.rollout(Counting(), flow.noise(plan, SHAPE), SIGMAS, Conditions(entries), plan, lambda: heard.append(1))
    assert len(heard) == calls


def test_a_replayed_step_has_a_ratio_of_exactly_one() -> None:
    counting = Counting()
    _, (step,) = draw(plan_with(), counting)
    step = replace(step, conditions=Conditions(tuple({"length": torch.tensor(1.0 + key.prompt)} for key in KEYS)))
    again = flow.evaluate(counting(step.latents, step.sigma, step.conditions, step.guidance), step)
    assert again.log_prob is not None
    assert step.log_prob is not None
    assert torch.equal(again.log_prob, step.log_prob)


def test_kept_graphs_are_of_all_members() -> None:
    kept: list[tuple[Step, Any]] = []
    weight = torch.tensor(0.3, requires_grad=True)

    def velocity(x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        return weight * torch.tanh(x)

    plan = plan_with(keep_graph=lambda step, found: kept.append((step, found)))
    with torch.no_grad():
        latents, _ = draw(plan, velocity)
    ((step, found),) = kept
    assert len(step.latents) == len(found.log_prob) == len(KEYS)
    assert found.log_prob.requires_grad
    assert not latents.requires_grad
