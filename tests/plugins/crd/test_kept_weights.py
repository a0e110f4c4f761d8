"""The two snapshots that CRD keeps, which of them draws, and the guidance it asks for. arXiv:2603.14128."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flowfactory import flow, testing
from flowfactory.policy import Linear, PiecewiseLinear
from flowfactory.testing import Learning
from flowfactory_crd.crd import OLD, SAMPLING, CRDConfig

START = (0.3, -0.2)
NEW = (0.36, -0.25)
ADVANTAGES = (1.2, -0.7, 0.4, -1.9, 0.9, 0.0, 2.0, 0.0, -0.4, 0.0, 0.0, -1.1)


def learn(**options: Any) -> Learning:
    return testing.learning(CRDConfig.model_validate(options), ADVANTAGES, START, dynamics=testing.ODE())


def test_the_two_snapshots_follow_schedules_of_their_own() -> None:
    old, sampling = Linear(start=0.75, end=0.25, iterations=2), PiecewiseLinear(points=((0, 0.4), (1, 0.9)))
    testing.check_average(learn(old=old, sampling=sampling), OLD, {0: 0.75, 1: 0.5})
    testing.check_average(learn(old=old, sampling=sampling), SAMPLING, {0: 0.4, 1: 0.9})


@pytest.mark.parametrize(
    ("iteration", "old", "sampling"),
    # straight lines from (0, 0.25) to (150, 0.999), and from (75, 0) to (208, 0.999)
    [(0, 0.25, 0.0), (75, 0.6245, 0.0), (150, 0.999, 0.5633458646616541), (208, 0.999, 0.999), (900, 0.999, 0.999)],
)
def test_the_schedules_that_are_left_out(iteration: int, old: float, sampling: float) -> None:
    testing.check_average(learn(), OLD, {iteration: old})
    testing.check_average(learn(), SAMPLING, {iteration: sampling})


def test_the_sampling_snapshot_draws(tmp_path: Path) -> None:
    algorithm = {"name": "crd", "sampling": {"name": "constant", "decay": 0.5}}
    model = {"p": START[0], "q": START[1]}
    run = testing.begin(testing.settings(tmp_path, algorithm, model=model, sampling={"steps": 4}))
    first = run.draw(0)
    assert first.experience.plan.weights == SAMPLING != OLD
    first.move_to(*NEW)
    run.policy.iteration_finished(0)
    drawn = run.draw(1).experience
    p, q = testing.blend(0.5, START, NEW)
    x = flow.noise(drawn.plan, (1, 4, 4)).double()
    for sigma in (1.0, 0.75, 0.5, 0.25):
        x = x - (p * x + q * sigma) / 4
    torch.testing.assert_close(drawn.latents.double(), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"kl": 0.5}, {"kl_guidance": 2.5}], ids=["without-guidance", "without-weight"])
def test_a_kl_that_needs_no_negative_prompt_asks_for_none(tmp_path: Path, options: dict[str, Any]) -> None:
    experience = testing.guided_learning(tmp_path, {"name": "crd", **options}).experience
    assert experience.plan.teacher_guidance == 1
    assert experience.conditions.negative is None


@pytest.mark.parametrize(
    ("options", "wanted"), [({}, 2.0), ({"kl": 1.0, "kl_guidance": 1.5}, 2.0), ({"kl": 1.0, "kl_guidance": 3.0}, 3.0)]
)
def test_the_plan_carries_the_largest_guidance_asked_for(options: dict[str, Any], wanted: float) -> None:
    plan = testing.make_plan(CRDConfig.model_validate(options), teacher_guidance=2.0)
    assert (plan.teacher_guidance, plan.guidance) == (wanted, 1)
    assert plan.recorded == frozenset()
