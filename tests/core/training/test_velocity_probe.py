"""The velocity at a few places that stay the same: of the toy's flow, p x + q sigma, it is known by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flowfactory.runs.train import train
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.setup import Run
from flowfactory.training.velocity_probe import SIGMAS, VelocityProbe

Load = Callable[..., Any]


@pytest.fixture
def run(prepared: Callable[..., Run]) -> Run:
    return prepared({})


def set_weights(run: Run, p: float, q: float) -> None:
    with torch.no_grad():
        for name, parameter in run.policy.parameters.items():
            parameter.fill_(p if name.endswith("p") else q)
    run.policy.mark_changed()


def test_a_velocity_twice_as_large_is_twice_as_large(run: Run) -> None:
    experience = collect_rollouts(run, 0, Timer(run.policy.device)).experience
    set_weights(run, 0.3, -0.2)
    before = run.velocity_probe.measure(experience)
    set_weights(run, 0.6, -0.4)
    assert run.velocity_probe.measure(experience) == pytest.approx(2 * before, rel=1e-6)
    set_weights(run, 0.0, 1.0)  # the velocity is sigma
    assert run.velocity_probe.measure(experience) == pytest.approx(sum(SIGMAS) / len(SIGMAS), rel=1e-6)


def test_neither_the_iteration_nor_the_pieces_change_it_and_it_draws_no_random_numbers(run: Run) -> None:
    first, later = (collect_rollouts(run, iteration, Timer(run.policy.device)).experience for iteration in (0, 3))
    state = torch.get_rng_state()
    found = run.velocity_probe.measure(first)
    assert run.velocity_probe.measure(later) == found
    assert torch.equal(torch.get_rng_state(), state)
    for size in (1, 3):
        small = VelocityProbe(run.policy, run.sampler, run.train, run.config.seed, size)
        assert small.measure(first) == pytest.approx(found, rel=1e-6)
    other = VelocityProbe(run.policy, run.sampler, run.train, run.config.seed + 1, 8)
    assert other.measure(first) != found


def test_a_resumed_run_goes_on_with_the_norm_of_the_first_iteration(load: Load) -> None:
    config = load({"training": {"iterations": 4}, "output": {"checkpoint_every": 1}})
    whole = [record["velocity_norm"] for record in train(config, say=lambda _: None).records()[1:]]
    assert whole[0] == 1
    assert len(set(whole)) == 4
    parts = config.model_copy(update={"output": config.output.model_copy(update={"dir": config.output.dir / "parts"})})
    short = parts.model_copy(update={"training": parts.training.model_copy(update={"iterations": 2})})
    train(short, say=lambda _: None)
    again = train(parts, resume=True, say=lambda _: None).records()[1:]
    assert [record["velocity_norm"] for record in again] == whole
