"""Solvers of the ODE: their order, and that they step as diffusers' schedulers do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor

from flowfactory import Canvas, flow
from flowfactory.flow.dynamics import ODE, DPMSolverConfig, FlowSDE, HeunConfig, ODEConfig
from flowfactory.flow.solvers import DPMSolver, Euler, Heun, Solver, euler
from flowfactory.testing.tiny_checkpoints import sd3_transformer
from flowfactory.types import Conditions, Dynamics, NoiseKey, SamplingPlan

SHAPE = (4, 8, 8)
SHIFTED = tuple(3 * s / (1 + 2 * s) for s in (i / 8 for i in range(8, -1, -1)))
SOLVERS = {"euler": (Euler, 1), "dpm-solver": (DPMSolver, 2), "heun": (Heun, 2)}


def plan_with(dynamics: Dynamics, steps: int, members: int = 2, **changes: Any) -> SamplingPlan:
    keys = tuple(NoiseKey(0, member) for member in range(members))
    return SamplingPlan(steps, Canvas(8, 8), 1.0, dynamics, seed=3, iteration=2, keys=keys, **changes)


def solve(
    make: Callable[[], Solver], velocity: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: Sequence[float]
) -> Tensor:
    solver = make()
    for now, then in pairwise(sigmas):
        x = solver.step(velocity(x, now), x, now, then, velocity)
    return x


def mixture(x: Tensor, sigma: float) -> Tensor:
    """The velocity where clean latents are a mixture of two normals, (0.3, -1, 0.4) and (0.7, 1.5, 0.7), in closed form."""
    share, mean, std = (torch.tensor(column, dtype=torch.float64) for column in ((0.3, 0.7), (-1, 1.5), (0.4, 0.7)))
    variance = ((1 - sigma) * std) ** 2 + sigma**2
    away = x[..., None] - (1 - sigma) * mean
    weight = (share.log() - 0.5 * variance.log() - 0.5 * away**2 / variance).softmax(-1)
    clean = mean + (1 - sigma) * std**2 / variance * away
    noise = sigma / variance * away
    return (weight * (noise - clean)).sum(-1)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_half_the_step_leaves_a_half_of_the_error_or_a_quarter(name: str) -> None:
    make, order = SOLVERS[name]
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)

    def arrive(steps: int, maker: Callable[[], Solver]) -> Tensor:
        return solve(maker, mixture, start, [1 - i / steps for i in range(steps)] + [0.0])

    exact = (4 * arrive(8192, Heun) - arrive(4096, Heun)) / 3  # extrapolated
    coarse, fine = (float((arrive(steps, make) - exact).norm()) for steps in (128, 256))
    assert coarse / fine == pytest.approx(2**order, rel=0.2)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_a_velocity_that_does_not_change_arrives_whatever_the_schedule(name: str) -> None:
    clean, noise = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = solve(SOLVERS[name][0], lambda x, sigma: noise - clean, noise, SHIFTED)
    assert torch.allclose(found, clean, atol=1e-12)


def test_floats_step_as_tensors_do_to_the_bit() -> None:
    source = torch.Generator().manual_seed(2)
    for _ in range(200):
        sigma, next_sigma = torch.rand(2, generator=source)
        x, v = torch.randn(2, 64, generator=source)
        assert torch.equal(euler(v, x, sigma, next_sigma), euler(v, x, sigma.item(), next_sigma.item()))


@pytest.fixture(scope="module")
def transformer() -> Callable[[Tensor, Tensor], Tensor]:
    """``velocity(latents, sigma [B])`` of a real Stable Diffusion 3 transformer of random weights."""
    torch.manual_seed(0)
    module = sd3_transformer(8, 4, 2, (2, 8), text_width=16, pooled_width=12).eval()
    source = torch.Generator().manual_seed(4)
    text = torch.randn(1, 5, module.config.joint_attention_dim, generator=source)
    pooled = torch.randn(1, module.config.pooled_projection_dim, generator=source)

    @torch.no_grad()
    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        given = text.expand(len(latents), -1, -1), pooled.expand(len(latents), -1)
        found: Tensor = module(latents, given[0], given[1], 1000 * sigma, return_dict=False)[0]
        return found

    return velocity


def ours(config: Any, velocity: Callable[[Tensor, Tensor], Tensor], sigmas: Tensor) -> tuple[Tensor, Tensor, int]:
    """The start, where the rollout arrives, and how many forwards it takes."""
    calls = 0

    def counted(latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        nonlocal calls
        calls += 1
        return velocity(latents, sigma)

    plan = plan_with(config().build("dynamics"), len(sigmas) - 1)
    start = flow.noise(plan, SHAPE)
    latents, steps = flow.rollout(counted, start, sigmas, Conditions(({},) * 2), plan)
    assert not steps
    return start, latents, calls


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("first", [1.0, None], ids=["from 1", "from diffusers' first"])
@pytest.mark.parametrize("steps", [2, 3, 8, 20])
def test_dpm_solver_draws_what_the_scheduler_of_diffusers_draws(
    steps: int, first: float | None, transformer: Callable[[Tensor, Tensor], Tensor]
) -> None:
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        flow_shift=3.0,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    if first is not None:
        scheduler.sigmas[0] = first
    sigmas = scheduler.sigmas.clone()
    x, found, calls = ours(DPMSolverConfig, transformer, sigmas)
    for time, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        x = scheduler.step(transformer(x, sigma.expand(2)), time, x).prev_sample
    assert float((found - x).abs().max() / x.abs().max()) < 1e-5
    assert calls == steps


@pytest.mark.parametrize("steps", [2, 3, 8])
def test_heun_draws_what_the_scheduler_of_diffusers_draws(steps: int, transformer: Callable[[Tensor, Tensor], Tensor]) -> None:
    scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    schedule = torch.cat([scheduler.timesteps[:1], scheduler.timesteps[1::2]]) / 1000
    x, found, calls = ours(HeunConfig, transformer, torch.cat([schedule, torch.zeros(1)]))
    for time in scheduler.timesteps:
        x = scheduler.step(transformer(x, (time / 1000).expand(2)), time, x).prev_sample
    assert float((found - x).abs().max() / x.abs().max()) < 1e-5
    assert calls == len(scheduler.timesteps) == 2 * steps - 1


@pytest.mark.parametrize("config", [ODEConfig, DPMSolverConfig, HeunConfig])
def test_a_solver_is_deterministic_and_has_no_density(config: Any) -> None:
    made = config().build("dynamics")
    assert not config.stochastic
    assert not made.stochastic
    assert made.window(9, 0, flow.generator("window")) == frozenset()


@pytest.mark.parametrize("config", [DPMSolverConfig, HeunConfig])
def test_what_a_solver_remembers_is_of_one_rollout(config: Any) -> None:
    plan, sigmas = plan_with(config().build("dynamics"), 4), torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
    start, given = flow.noise(plan, SHAPE), Conditions(({},) * 2)

    def bend(x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        return torch.tanh(x) * flow.expand_sigma(sigma, x)

    once, again = (flow.rollout(bend, start, sigmas, given, plan)[0] for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, flow.rollout(bend, start, sigmas, given, plan_with(ODE(), 4))[0])


def test_steps_that_follow_a_stochastic_one_remember_nothing_from_before_it() -> None:
    """A stranger's dynamics that adds noise, and has a solver for the other steps."""

    class Both(FlowSDE):
        def make_solver(self) -> Solver:
            return DPMSolver()

    made = Both(0.7, lambda steps, iteration, generator: frozenset({2}))
    sigmas = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    plan = plan_with(made, 5, stochastic=frozenset({2}))
    given = Conditions(({},) * 2)
    points: list[Tensor] = []

    def bend(x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        points.append(x)
        return torch.tanh(x) + flow.expand_sigma(sigma, x)

    found, _ = flow.rollout(bend, flow.noise(plan, SHAPE), sigmas, given, plan)
    rest = solve(DPMSolver, lambda x, s: torch.tanh(x) + s, points[3], sigmas[3:].tolist())
    assert torch.allclose(found, rest, atol=1e-6)
    assert math.isfinite(float(found.sum()))


def test_a_look_ahead_has_no_graph_and_rounds_as_latents_rest() -> None:
    plan = plan_with(HeunConfig().build("dynamics"), 2, storage=torch.bfloat16)
    dtypes = []

    def note(x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        dtypes.append(x.dtype)
        return x

    latents, _ = flow.rollout(note, flow.noise(plan, SHAPE), torch.tensor([1.0, 0.5, 0.0]), Conditions(({},) * 2), plan)
    assert dtypes == [torch.bfloat16] * 3
    assert latents.dtype == torch.bfloat16
