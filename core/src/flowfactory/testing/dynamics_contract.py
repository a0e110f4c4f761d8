"""The contract of dynamics."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowfactory import flow
from flowfactory.config.component import DynamicsConfig
from flowfactory.errors import RunError, UserError
from flowfactory.hooks.building import build
from flowfactory.testing.model_bench import bench
from flowfactory.testing.model_contract import check_replay
from flowfactory.testing.two_parameter import TwoParameterConfig
from flowfactory.types import Dynamics, Transition

SMALL = 1e-4
"""A step so short that what dynamics are in the limit shows."""


def check_dynamics(config: DynamicsConfig, steps: int = 8, marginals: bool = True) -> None:
    """Dynamics keep their contract.

    The window names some of ``steps`` where they are stochastic, none where they are not, and the same for the same generator.
    A transition has a mean like the latents and a standard deviation [B, 1...], finite, which is above zero just where a step
    is stochastic; it treats samples one by one and leaves the latents as they were. The log-density is [B], a mean over
    elements, and greatest at the mean. Steps drawn on a two-parameter flow and replayed give a ratio of one, and a gradient.

    With ``marginals``, short steps of the exact velocity lead from noisy latents at one sigma to those of the next, in mean and
    in variance, as they must if pictures drawn with noise are to be those that the ODE draws.
    """
    try:
        dynamics: Any = build(config, "dynamics")
        _check_names(dynamics)
        assert dynamics.stochastic is type(config).stochastic, (
            f"stochastic is {dynamics.stochastic} of what is built and {type(config).stochastic} of its options; let both agree"
        )
        window = _check_window(dynamics, steps)
        _check_transitions(dynamics, steps, window)
        if dynamics.stochastic:
            _check_density(dynamics)
        if marginals:
            _check_marginals(dynamics)
        _check_bench(dynamics, steps)
    except (RunError, UserError) as error:
        raise AssertionError(str(error)) from error


def _check_names(dynamics: object) -> None:
    for name in ("stochastic", "window", "transition", "log_density"):
        assert hasattr(dynamics, name), (
            f"{type(dynamics).__name__} has no {name}; flowfactory.flow.ODEConfig shows what there is"
        )


def _check_window(dynamics: Dynamics, steps: int) -> frozenset[int]:
    first, again = (dynamics.window(steps, 0, flow.generator("window")) for _ in range(2))
    assert isinstance(first, frozenset), f"window returned a {type(first).__name__}; return a frozenset of steps"
    assert first == again, "window names other steps for the same generator; draw with the one that is passed"
    outside = sorted(step for step in first if step not in range(steps))
    assert not outside, f"window names the steps {outside}; there are 0 to {steps - 1}"
    assert bool(first) == dynamics.stochastic, f"window names {len(first)} steps and stochastic is {dynamics.stochastic}; " + (
        "name at least one step" if dynamics.stochastic else "return frozenset()"
    )
    return first


def _check_transitions(dynamics: Dynamics, steps: int, window: frozenset[int]) -> None:
    velocity, latents = (torch.randn(3, 2, 4, 4, generator=flow.generator(name)) for name in ("velocity", "latents"))
    before, sigmas = latents.clone(), torch.linspace(1, 0, steps + 1)
    for step in sorted(window) if dynamics.stochastic else range(steps):
        here, there = (_rows(sigmas[i], latents) for i in (step, step + 1))
        moved = dynamics.transition(velocity, latents, here, there)
        _check_shapes(moved, latents, f"step {step} of {steps}")
        assert bool((moved.std > 0).all()) or not dynamics.stochastic, f"std is zero in step {step}, which window names"
        assert bool((moved.std == 0).all()) or dynamics.stochastic, f"std is above zero in step {step}, and stochastic is False"
        alone = dynamics.transition(velocity[1:2], latents[1:2], here[1:2], there[1:2])
        assert torch.allclose(alone.mean, moved.mean[1:2], atol=1e-5), "a sample moves otherwise beside others than alone"
    assert torch.equal(latents, before), "transition changed the latents it was given"


def _rows(sigma: Tensor, latents: Tensor) -> Tensor:
    """[B, 1...]."""
    return sigma.expand(len(latents)).reshape(-1, *(1 for _ in latents.shape[1:])).clone()


def _check_shapes(moved: object, latents: Tensor, place: str) -> None:
    assert isinstance(moved, Transition), (
        f"transition returned a {type(moved).__name__}; return flowfactory.Transition(mean, std)"
    )
    wanted = [len(latents), *(1 for _ in latents.shape[1:])]
    assert moved.mean.shape == latents.shape, f"mean is {list(moved.mean.shape)}; latents are {list(latents.shape)}"
    assert list(moved.std.shape) == wanted, f"std is {list(moved.std.shape)}; one for each sample is {wanted}"
    for name, value in moved._asdict().items():
        assert bool(value.isfinite().all()), f"{name} is not finite in {place}"
    assert bool((moved.std >= 0).all()), f"std is below zero in {place}"


def _check_density(dynamics: Dynamics) -> None:
    latents = torch.randn(3, 2, 4, 4, generator=flow.generator("latents"))
    moved = dynamics.transition(
        torch.zeros_like(latents), latents, _rows(torch.tensor(0.6), latents), _rows(torch.tensor(0.5), latents)
    )
    near = moved.mean + 0.5 * moved.std * latents
    found = dynamics.log_density(near, moved)
    assert list(found.shape) == [3], f"log_density is {list(found.shape)}; one for each sample is [3]"
    assert bool(found.isfinite().all()), "log_density is not finite"
    assert bool((dynamics.log_density(moved.mean, moved) > found).all()), "log_density is not greatest at the mean"
    twice = dynamics.log_density(torch.cat([near, near], -1), Transition(torch.cat([moved.mean, moved.mean], -1), moved.std))
    assert torch.allclose(twice, found, rtol=1e-4), (
        "log_density grows with the number of elements; take the mean over them, as flowfactory.flow.log_normal does"
    )


def _check_marginals(dynamics: Dynamics) -> None:
    """Of clean and noise the next latents have (1 - sigma) and sigma, the latter in the square with the fresh noise."""
    for sigma in (0.8, 0.5, 0.3):
        clean, noise = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (3.0, 0.0))
        mean_of_clean, std = _step(dynamics, clean, noise, sigma)
        mean_of_noise, _ = _step(dynamics, 0 * clean, noise + 1, sigma)
        there, fresh = sigma - SMALL, std**2
        assert abs(mean_of_clean / 3 - (1 - there)) < 1e-2 * SMALL + 0.05 * fresh, (
            f"a short step from sigma {sigma} leaves {mean_of_clean / 3:.6f} of the clean latents and not {1 - there:.6f}; "
            "pass marginals=False if they are meant to leave the path"
        )
        variance = mean_of_noise**2 + fresh
        assert abs(variance - there**2) < 1e-2 * SMALL + 0.05 * fresh, (
            f"a short step from sigma {sigma} leads to noise of variance {variance:.6f} and not {there**2:.6f}; "
            "see the signs of the drift, or pass marginals=False if that is meant"
        )


def _step(dynamics: Dynamics, clean: Tensor, noise: Tensor, sigma: float) -> tuple[float, float]:
    here, there = (torch.full_like(clean, value) for value in (sigma, sigma - SMALL))
    moved = dynamics.transition(noise - clean, (1 - sigma) * clean + sigma * noise, here, there)
    return float(moved.mean), float(moved.std)


def _check_bench(dynamics: Dynamics, steps: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        made = bench(TwoParameterConfig(), Path(name), steps=steps, dynamics=dynamics)
    drawn = made.draw(len(made.plan.keys))
    assert torch.equal(drawn.latents, made.draw(len(made.plan.keys)).latents), "the same plan drew something else"
    assert torch.allclose(drawn.latents, made.draw(3).latents, atol=1e-4), "the batch size changes what is drawn"
    check_replay(made.policy, drawn.steps)
    if drawn.steps:
        log_prob = made.policy.evaluate(drawn.steps[0]).log_prob
        assert log_prob is not None
        assert log_prob.requires_grad, "the log-density of a step has no gradient"
