from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowfactory import flow
from flowfactory.dynamics import ODE, FlowSDE, FlowSDEConfig, ODEConfig
from flowfactory.types import Transition

SIGMAS = st.floats(0.02, 0.98)
PARTS = st.floats(0.05, 0.95)
VALUES = st.floats(-3, 3)


def sde(level: float = 0.7) -> FlowSDE:
    return FlowSDEConfig(noise_level=level).build("dynamics")


def scalar(value: float) -> torch.Tensor:
    return torch.tensor([[value]])


@given(x=VALUES, v=VALUES, sigma=SIGMAS, part=PARTS, level=st.floats(0.05, 1.5))
def test_a_step_is_that_of_the_papers_equation_9(x: float, v: float, sigma: float, part: float, level: float) -> None:
    then = sigma * part
    mean, std = sde(level).transition(scalar(v), scalar(x), scalar(sigma), scalar(then))
    # arXiv:2505.05470: x + [v + s² / (2 t) (x + (1 - t) v)] dt, s = a sqrt(t / (1 - t)); noise s sqrt(dt)
    spread = level * math.sqrt(sigma / (1 - sigma))
    expected = x + (v + spread**2 / (2 * sigma) * (x + (1 - sigma) * v)) * (then - sigma)
    size = 1 + spread**2 / (2 * sigma) * (abs(x) + abs(v))
    assert float(mean) == pytest.approx(expected, abs=1e-5 * size)
    assert float(std) == pytest.approx(spread * math.sqrt(sigma - then), rel=1e-4)


@given(x=VALUES, v=VALUES, then=st.floats(0.1, 0.98))
def test_at_sigma_one_the_next_sigma_stands_in_for_the_pole(x: float, v: float, then: float) -> None:
    mean, std = sde().transition(scalar(v), scalar(x), scalar(1.0), scalar(then))
    # sqrt(sigma / (1 - where(sigma == 1, sigma_max, sigma))) of the authors' sde_step_with_logprob: 1 stays above the line
    spread = 0.7 * math.sqrt(1 / (1 - then))
    dt = then - 1
    expected = x * (1 + spread**2 / 2 * dt) + v * dt  # (1 - sigma) is zero
    assert float(mean) == pytest.approx(expected, abs=1e-4)
    assert float(std) == pytest.approx(spread * math.sqrt(1 - then), rel=1e-4)
    assert float(std) == pytest.approx(0.7, rel=1e-4)  # whatever the schedule


@given(x=VALUES, v=VALUES, sigma=SIGMAS, part=PARTS)
def test_without_noise_a_step_is_eulers(x: float, v: float, sigma: float, part: float) -> None:
    arguments = (scalar(v), scalar(x), scalar(sigma), scalar(sigma * part))
    mean, std = sde(1e-6).transition(*arguments)
    torch.testing.assert_close(mean, ODE().transition(*arguments).mean, rtol=0, atol=1e-5)
    assert float(std) < 1e-5
    assert float(ODE().transition(*arguments).mean) == pytest.approx(x + sigma * (part - 1) * v, abs=1e-5)
    assert float(ODE().transition(*arguments).std) == 0


@pytest.mark.parametrize("level", [0.3, 0.7, 1.0])
@pytest.mark.parametrize(("centre", "width"), [(0.8, 0.5), (-1.5, 0.2)])
def test_the_marginals_are_those_of_the_ode(level: float, centre: float, width: float) -> None:
    """Clean data is N(centre, width²), whose velocity is known: the marginal at sigma is
    N((1 - sigma) centre, (1 - sigma)² width² + sigma²), and both dynamics must end at the data."""
    steps, count = 400, 20_000
    sigmas = torch.linspace(0.98, 0, steps + 1, dtype=torch.float64)

    def moments(sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (1 - sigma) * centre, (1 - sigma) ** 2 * width**2 + sigma**2

    source = flow.generator("marginals", int(level * 10))
    mean, variance = moments(sigmas[0])
    x = mean + variance.sqrt() * torch.randn(count, 1, generator=source, dtype=torch.float64)
    dynamics = sde(level)
    checked = 0
    for i, (now, then) in enumerate(itertools.pairwise(sigmas)):
        mean, variance = moments(now)
        # E[noise - clean | x] of two independent Gaussians
        v = -centre + (now - (1 - now) * width**2) / variance * (x - mean)
        step = dynamics.transition(v, x, now.reshape(1, 1), then.reshape(1, 1))
        x = step.mean + step.std * torch.randn(count, 1, generator=source, dtype=torch.float64)
        if i % 100 == 99:
            mean, variance = moments(then)
            # four standard errors, and what steps of 1 / 400 leave
            assert float(x.mean()) == pytest.approx(float(mean), abs=4 * math.sqrt(float(variance) / count) + 0.005)
            assert float(x.var() / variance) == pytest.approx(1, abs=4 * math.sqrt(2 / count) + 0.03)
            checked += 1
    assert checked == 4


@given(
    steps=st.integers(2, 30),
    data=st.data(),
)
def test_a_window_is_drawn_from_its_candidates(steps: int, data: st.DataObject) -> None:
    candidates = data.draw(st.lists(st.integers(0, steps - 1), min_size=1, unique=True))
    count = data.draw(st.integers(1, len(candidates)))
    dynamics = FlowSDEConfig(sde_steps=tuple(candidates), num_sde_steps=count).build("dynamics")
    seed = data.draw(st.integers(0, 1000))
    window = dynamics.window(steps, 0, flow.generator(seed))
    assert window <= set(candidates)
    assert len(window) == count
    assert window == dynamics.window(steps, 0, flow.generator(seed))


def test_every_candidate_gets_its_turn() -> None:
    dynamics = FlowSDEConfig(sde_steps=(1, 2, 5), num_sde_steps=1).build("dynamics")
    drawn = [dynamics.window(8, 0, flow.generator(seed)) for seed in range(60)]
    assert set(drawn) == {frozenset({1}), frozenset({2}), frozenset({5})}
    assert min(drawn.count(window) for window in set(drawn)) >= 8  # 20 are expected, with a deviation of 3.7


def test_all_steps_but_the_last_are_stochastic_when_nothing_is_said() -> None:
    assert FlowSDEConfig().build("d").window(5, 0, flow.generator(0)) == {0, 1, 2, 3}
    assert FlowSDEConfig(num_sde_steps=2).build("d").window(3, 0, flow.generator(0)) == {0, 1}
    assert ODEConfig().build("d").window(5, 0, flow.generator(0)) == frozenset()


def test_the_last_step_may_be_stochastic_and_is_finite() -> None:
    mean, std = sde().transition(scalar(0.5), scalar(1.0), scalar(0.2), scalar(0.0))
    assert float(std) == pytest.approx(0.7 * math.sqrt(0.25) * math.sqrt(0.2), rel=1e-5)
    assert bool(mean.isfinite().all())


def test_each_sample_may_be_at_a_sigma_of_its_own() -> None:
    x, v = torch.randn(3, 2, 2, generator=flow.generator(1)), torch.randn(3, 2, 2, generator=flow.generator(2))
    now, then = torch.tensor([1.0, 0.6, 0.3]).reshape(3, 1, 1), torch.tensor([0.8, 0.2, 0.0]).reshape(3, 1, 1)
    mean, std = sde().transition(v, x, now, then)
    assert (mean.shape, std.shape) == (x.shape, (3, 1, 1))
    for i in range(3):
        one = sde().transition(v[i : i + 1], x[i : i + 1], now[i : i + 1], then[i : i + 1])
        assert torch.equal(mean[i], one.mean[0])
        assert torch.equal(std[i], one.std[0])


def test_the_density_is_the_mean_of_the_normals() -> None:
    transition = Transition(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[0.5], [2.0]]))
    at = torch.tensor([[0.5, 0.5], [3.0, 3.0]])
    normal: Any = torch.distributions.Normal(transition.mean, transition.std)
    torch.testing.assert_close(sde().log_density(at, transition), normal.log_prob(at).mean(1))


def test_the_ode_refuses_a_density() -> None:
    with pytest.raises(ValueError, match="has no log-density; choose stochastic dynamics, such as flow-sde"):
        ODE().log_density(torch.zeros(1, 1), Transition(torch.zeros(1, 1), torch.zeros(1, 1)))


def test_float32_is_enough_close_to_sigma_one() -> None:
    x, v = torch.randn(64, 4, generator=flow.generator(3)), torch.randn(64, 4, generator=flow.generator(4))
    now, then = torch.full((64, 1), 0.999), torch.full((64, 1), 0.99)
    single = sde().transition(v, x, now, then)
    double = sde().transition(v.double(), x.double(), now.double(), then.double())
    torch.testing.assert_close(single.mean.double(), double.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(single.std.double(), double.std, rtol=1e-4, atol=0)
