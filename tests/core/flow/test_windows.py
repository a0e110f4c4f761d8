"""Stochastic steps that differ from prompt to prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowfactory import Conditions, flow
from flowfactory.canvas import Canvas
from flowfactory.flow.dynamics import FlowSDEConfig
from flowfactory.types import NoiseKey, SamplingPlan, Step

SIGMAS = torch.linspace(1, 0, 6)
WINDOWS = {7: frozenset({0, 3}), 2: frozenset({1, 2}), 5: frozenset({0, 1})}
KEYS = tuple(NoiseKey(prompt, member) for prompt in (7, 2, 5) for member in range(2))
PLAN = SamplingPlan(
    steps=5,
    canvas=Canvas(4, 4),
    guidance=1.0,
    dynamics=FlowSDEConfig().build("dynamics"),
    seed=3,
    iteration=0,
    keys=KEYS,
    stochastic=frozenset({0, 1, 2, 3}),
    recorded=frozenset({0, 1, 2, 3}),
    windows=WINDOWS,
)


def roll(plan: SamplingPlan) -> tuple[torch.Tensor, tuple[Step, ...]]:
    conditions = Conditions(tuple({"prompt": torch.tensor(float(key.prompt))} for key in plan.keys))

    def velocity(latents: torch.Tensor, sigma: torch.Tensor, own: Conditions, guidance: float) -> torch.Tensor:
        return 0.3 * latents + 0.1 * own.stack("prompt").reshape(-1, 1, 1) * sigma.reshape(-1, 1, 1)

    return flow.rollout(velocity, flow.noise(plan, (2, 3)), SIGMAS, conditions, plan)


@pytest.mark.parametrize("prompt", WINDOWS)
def test_each_prompt_is_drawn_as_in_a_plan_of_its_own_window(prompt: int) -> None:
    latents, steps = roll(PLAN)
    rows = [row for row, key in enumerate(KEYS) if key.prompt == prompt]
    own = WINDOWS[prompt]
    alone, expected = roll(replace(PLAN.rows(rows), windows={}, stochastic=own, recorded=own))
    assert torch.equal(latents[rows], alone)
    assert len(steps) == len(expected) == 2
    for one, two in zip((step.rows(rows) for step in steps), expected, strict=True):
        for name in ("latents", "sigma", "next_sigma", "next_latents", "log_prob"):
            assert torch.equal(getattr(one, name), getattr(two, name)), name
        assert torch.equal(one.conditions.stack("prompt"), two.conditions.stack("prompt"))


@pytest.mark.parametrize("pieces", [[range(1), range(1, 6)], [[5, 0, 3], [2, 4, 1]]])
def test_no_batch_changes_what_a_sample_is_or_what_is_recorded_of_it(pieces: list[list[int]]) -> None:
    latents, steps = roll(PLAN)
    for rows in pieces:
        part, recorded = roll(PLAN.rows(rows))
        assert torch.equal(part, latents[list(rows)])
        for one, whole in zip(recorded, steps, strict=True):
            assert torch.equal(one.sigma, whole.sigma[list(rows)])
            assert torch.equal(one.latents, whole.latents[list(rows)])
            torch.testing.assert_close(one.log_prob, whole.log_prob[list(rows)])


def test_means_are_recorded_too_and_give_the_log_density() -> None:
    _, steps = roll(replace(PLAN, means=True))
    for step in steps:
        assert step.mean is not None
        assert step.next_latents is not None
        sigma, then = step.sigma.reshape(-1, 1, 1), step.next_sigma.reshape(-1, 1, 1)
        std = PLAN.dynamics.transition(torch.zeros_like(step.mean), step.latents, sigma, then).std
        torch.testing.assert_close(step.log_prob, flow.log_normal(step.next_latents, step.mean, std))


def test_all_steps_can_be_recorded_of_all_samples_to_look_for_what_went_wrong() -> None:
    latents, steps = roll(replace(PLAN, recorded=frozenset(range(5))))
    assert torch.equal(latents, roll(PLAN)[0])
    assert [float(step.sigma[0]) for step in steps] == pytest.approx(SIGMAS[:-1].tolist())
    assert all(len(step.latents) == 6 for step in steps)


@pytest.mark.parametrize("first", [1, 2])
def test_a_shared_prefix_records_nothing_where_windows_begin_later(first: int) -> None:
    windows = {7: frozenset({first}), 2: frozenset({first + 1}), 5: frozenset({3})}
    steps = frozenset().union(*windows.values())
    starts = tuple(NoiseKey(key.prompt, 0) for key in KEYS)
    plan = replace(PLAN, windows=windows, stochastic=steps, recorded=steps, starts=starts)
    (whole, (kept,)), (shared, (own,)) = roll(plan), roll(replace(plan, shares_prefix=True))
    assert torch.equal(shared, whole)
    for name in ("latents", "sigma", "next_latents", "log_prob"):
        assert torch.equal(getattr(own, name), getattr(kept, name)), name
