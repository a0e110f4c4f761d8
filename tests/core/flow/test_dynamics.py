from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowfactory import UserError, flow
from flowfactory.config.schema import RunConfig
from flowfactory.flow.dynamics import CPS, ODE, CPSConfig, DanceSDE, DanceSDEConfig, FlowSDE, FlowSDEConfig, ODEConfig, Slide
from flowfactory.types import Dynamics, Transition

Load = Callable[..., RunConfig]

SIGMAS = st.floats(0.02, 0.98)
PARTS = st.floats(0.05, 0.95)
VALUES = st.floats(-3, 3)


def sde(level: float = 0.7) -> FlowSDE:
    return FlowSDEConfig(noise_level=level).build("dynamics")


def dance(level: float = 0.3) -> DanceSDE:
    return DanceSDEConfig(noise_level=level).build("dynamics")


def cps(level: float = 0.8) -> CPS:
    return CPSConfig(noise_level=level).build("dynamics")


STOCHASTIC: dict[str, Any] = {"flow-sde": FlowSDEConfig, "dance-sde": DanceSDEConfig, "cps": CPSConfig}
every_dynamics = pytest.mark.parametrize("made", [sde(), dance(), cps()], ids=list(STOCHASTIC))
every_config = pytest.mark.parametrize("config", list(STOCHASTIC.values()), ids=list(STOCHASTIC))


def scalar(value: float) -> torch.Tensor:
    return torch.tensor([[value]])


def double(*values: float) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([[value]], dtype=torch.float64) for value in values)


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


@given(x=VALUES, v=VALUES, clean=st.floats(1e-7, 0.0149), times=st.floats(4.1, 40))
def test_just_below_sigma_one_it_does_too(x: float, v: float, clean: float, times: float) -> None:
    sigma = 1 - clean
    then = sigma - times * clean
    arguments = double(v, x, sigma, then)
    mean, std = sde().transition(*arguments)
    spread = 0.7 * math.sqrt(sigma / (1 - then))
    assert float(std) == pytest.approx(spread * math.sqrt(sigma - then), rel=1e-6)
    expected = x + (v + spread**2 / (2 * sigma) * (x + (1 - sigma) * v)) * (then - sigma)
    assert float(mean) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("first", [1.0, 0.999999, 0.9999, 0.999, 0.99])
def test_latents_stay_of_the_size_of_noise_wherever_a_schedule_begins(first: float) -> None:
    # diffusers' UniPC, which draws Wan's videos, begins at 0.999999
    sigmas = torch.tensor([first, 0.9, 0.8, 0.6, 0.3])
    source = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4096, generator=source)  # and the velocity of data that are zero
    for now, then in itertools.pairwise(sigmas):
        mean, std = sde().transition(latents / now, latents, now.reshape(1, 1), then.reshape(1, 1))
        latents = mean + std * torch.randn(latents.shape, generator=source)
        assert float(latents.std()) < 1.3


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [4, 10, 28, 50, 200])
def test_a_shifted_schedule_is_that_of_the_equation_after_its_first_step(shift: float, steps: int) -> None:
    even = torch.linspace(1, 0, steps + 1)[1:-1]
    sigmas = flow.shift_sigma(even, shift)
    for now, then in itertools.pairwise(sigmas):
        std = sde().transition(scalar(0.0), scalar(0.0), now.reshape(1, 1), then.reshape(1, 1)).std
        assert torch.equal(std, (0.7 * torch.sqrt(now / (1 - now)) * torch.sqrt(-(then - now))).reshape(1, 1))


@given(x=VALUES, v=VALUES, sigma=st.floats(0.02, 1), part=PARTS, eta=st.floats(0.05, 1.5))
def test_a_step_of_dance_has_one_spread_at_every_sigma(x: float, v: float, sigma: float, part: float, eta: float) -> None:
    then = sigma * part
    mean, std = dance(eta).transition(*double(v, x, sigma, then))
    # arXiv:2505.07818: dx = [v + eta² / (2 sigma) (x + (1 - sigma) v)] dsigma + eta dw
    expected = x + (v + eta**2 / (2 * sigma) * (x + (1 - sigma) * v)) * (then - sigma)
    assert float(mean) == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert float(std) == pytest.approx(eta * math.sqrt(sigma - then), rel=1e-10)


@given(x=VALUES, v=VALUES, sigma=st.floats(0.02, 1), part=PARTS, level=st.floats(0.02, 1))
def test_a_step_of_cps_mixes_clean_old_noise_and_fresh(x: float, v: float, sigma: float, part: float, level: float) -> None:
    then = sigma * part
    mean, std = cps(level).transition(*double(v, x, sigma, then))
    # arXiv:2509.05952
    spread = then * math.sin(level * math.pi / 2)
    kept = math.sqrt(max(0.0, then**2 - spread**2))
    expected = (1 - then) * (x - sigma * v) + kept * (x + (1 - sigma) * v)
    # then² - spread² cancels near a level of one, and its root keeps half the digits
    assert float(mean) == pytest.approx(expected, rel=1e-7, abs=1e-7)
    assert float(std) == pytest.approx(spread, rel=1e-10)


@given(clean=VALUES, noise=VALUES, sigma=st.floats(0.02, 1), part=PARTS, level=st.floats(0.02, 1))
def test_cps_preserves_the_coefficients(clean: float, noise: float, sigma: float, part: float, level: float) -> None:
    then = sigma * part

    def step(clean: float, noise: float) -> tuple[float, float]:
        latents = (1 - sigma) * clean + sigma * noise
        mean, std = cps(level).transition(*double(noise - clean, latents, sigma, then))
        return float(mean), float(std)

    of_clean, of_noise, of_fresh = step(1, 0)[0], step(0, 1)[0], step(0, 0)[1]
    assert of_clean == pytest.approx(1 - then, rel=1e-10)
    # the old noise and the fresh are independent, of variance one each
    assert of_noise**2 + of_fresh**2 == pytest.approx(then**2, rel=1e-10)
    assert of_noise >= 0
    mean, std = step(clean, noise)
    assert mean == pytest.approx(of_clean * clean + of_noise * noise, rel=1e-10, abs=1e-10)
    assert std == of_fresh, "what is added depends on the place alone"


def test_cps_keeps_no_old_noise_at_a_level_of_one() -> None:
    mean, std = cps(1.0).transition(*double(0.7 - 0.2, 0.4 * 0.2 + 0.6 * 0.7, 0.6, 0.5))
    assert float(mean) == pytest.approx(0.5 * 0.2, rel=1e-10)  # of clean 0.2 and noise 0.7
    assert float(std) == pytest.approx(0.5, rel=1e-10)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (sde(0.7), 0.7),
        (dance(0.3), 0.3 * math.sqrt(1 - 0.84)),
        (cps(0.8), 0.84 * math.sin(0.4 * math.pi)),
    ],
    ids=list(STOCHASTIC),
)
def test_at_sigma_one_the_std_is_finite_and_the_latents_are_the_noise(made: Dynamics, expected: float) -> None:
    x, v = 0.9, 0.4
    mean, std = made.transition(*double(v, x, 1.0, 0.84))
    assert float(std) == pytest.approx(expected, rel=1e-10)
    # the noise is x, and clean is x - v
    kept = math.sqrt(0.84**2 - expected**2) if isinstance(made, CPS) else 0.84 - expected**2 / 2
    assert float(mean) == pytest.approx((1 - 0.84) * (x - v) + kept * x, rel=1e-10)


@given(x=VALUES, v=VALUES, sigma=SIGMAS, part=PARTS)
def test_without_noise_a_step_is_eulers(x: float, v: float, sigma: float, part: float) -> None:
    arguments = (scalar(v), scalar(x), scalar(sigma), scalar(sigma * part))
    for made in (sde(1e-6), dance(1e-6), cps(1e-6)):
        mean, std = made.transition(*arguments)
        torch.testing.assert_close(mean, ODE().transition(*arguments).mean, rtol=0, atol=1e-5)
        assert float(std) < 1e-5
    assert float(ODE().transition(*arguments).mean) == pytest.approx(x + sigma * (part - 1) * v, abs=1e-5)
    assert float(ODE().transition(*arguments).std) == 0


@pytest.mark.parametrize(("centre", "width"), [(0.8, 0.5), (-1.5, 0.2)])
@pytest.mark.parametrize(("kind", "level"), [(sde, 0.3), (sde, 0.7), (sde, 1.0), (dance, 0.3), (dance, 1.0)])
def test_the_marginals_are_those_of_the_ode(
    kind: Callable[[float], Dynamics], level: float, centre: float, width: float
) -> None:
    """Clean data is N(centre, width²), whose velocity is known: the marginal at sigma is
    N((1 - sigma) centre, (1 - sigma)² width² + sigma²), and all dynamics must end at the data."""
    steps, count = 400, 20_000
    sigmas = torch.linspace(0.98, 0, steps + 1, dtype=torch.float64)

    def moments(sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (1 - sigma) * centre, (1 - sigma) ** 2 * width**2 + sigma**2

    source = flow.generator("marginals", int(level * 10))
    mean, variance = moments(sigmas[0])
    x = mean + variance.sqrt() * torch.randn(count, 1, generator=source, dtype=torch.float64)
    dynamics = kind(level)
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


@pytest.mark.parametrize("level", [0.3, 0.8, 1.0])
def test_cps_has_the_marginals_of_a_point_in_few_steps(level: float) -> None:
    """Clean data is one point, so that clean and noise are known exactly: the marginal at sigma is
    N((1 - sigma) point, sigma²), however coarse the steps."""
    count, point = 20_000, -1.5
    source = flow.generator("point", int(level * 10))
    x = torch.randn(count, 1, generator=source, dtype=torch.float64)
    for now, then in itertools.pairwise((1.0, 0.9, 0.6, 0.35, 0.1)):
        v = (x - point) / now  # noise - clean
        mean, std = cps(level).transition(v, x, *double(now, then))
        x = mean + std * torch.randn(count, 1, generator=source, dtype=torch.float64)
        # four standard errors
        assert float(x.mean()) == pytest.approx((1 - then) * point, abs=4 * then / math.sqrt(count))
        assert float(x.var() / then**2) == pytest.approx(1, abs=4 * math.sqrt(2 / count))
    mean, std = cps(level).transition((x - point) / 0.1, x, *double(0.1, 0.0))
    torch.testing.assert_close(mean, torch.full_like(x, point), rtol=1e-10, atol=0)
    assert float(std) == 0


@given(
    steps=st.integers(2, 30),
    data=st.data(),
)
def test_a_window_is_drawn_from_its_candidates(steps: int, data: st.DataObject) -> None:
    candidates = data.draw(st.lists(st.integers(0, steps - 1), min_size=1, unique=True))
    count = data.draw(st.integers(1, len(candidates)))
    config = data.draw(st.sampled_from(list(STOCHASTIC.values())))
    dynamics = config(sde_steps=tuple(candidates), num_sde_steps=count).build("dynamics")
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


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("slide", [None, Slide(every=1)], ids=["drawn", "sliding"])
@every_config
def test_one_or_two_steps_are_enough_of_a_window(config: Any, slide: Slide | None, count: int) -> None:
    """Flow-GRPO-Fast."""
    window = config(num_sde_steps=count, slide=slide).build("d").window
    windows = [window(10, iteration, flow.generator("window", iteration)) for iteration in range(60)]
    assert all(len(chosen) == count for chosen in windows)
    assert frozenset().union(*windows) == set(range(9)), "each gets its turn, and the last step, 9, never"


@every_config
@pytest.mark.parametrize("slide", [None, Slide(every=3, stride=2)], ids=["drawn", "sliding"])
def test_a_window_does_not_depend_on_the_order_of_the_iterations(config: Any, slide: Slide | None) -> None:
    def windows(iterations: range) -> dict[int, frozenset[int]]:
        window = config(num_sde_steps=2, slide=slide).build("d").window
        return {i: window(10, i, flow.generator("window", 42, i)) for i in iterations}

    forwards, backwards = windows(range(40)), windows(range(39, -1, -1))
    assert forwards == backwards
    assert windows(range(20, 40)) == {i: forwards[i] for i in range(20, 40)}, "a run that goes on finds its place"
    assert len(set(forwards.values())) > 1


@pytest.mark.parametrize(
    ("every", "stride", "places"),
    [
        (1, 1, [{0, 1}, {1, 3}, {3, 4}, {4, 7}, {0, 1}, {1, 3}]),
        (2, 1, [{0, 1}, {0, 1}, {1, 3}, {1, 3}, {3, 4}, {3, 4}, {4, 7}, {4, 7}, {0, 1}]),
        (1, 2, [{0, 1}, {3, 4}, {4, 7}, {0, 1}, {3, 4}]),
        (3, 3, [{0, 1}, {0, 1}, {0, 1}, {4, 7}, {4, 7}, {4, 7}, {0, 1}]),
        (1, 9, [{0, 1}, {4, 7}, {0, 1}]),
    ],
)
@every_config
def test_a_window_slides_and_starts_again(config: Any, every: int, stride: int, places: list[set[int]]) -> None:
    # the candidates 0, 1, 3, 4, 7, by noise and not as they are written
    slide = Slide(every=every, stride=stride)
    window = config(sde_steps=(3, 0, 7, 1, 4), num_sde_steps=2, slide=slide).build("d").window
    assert [window(9, i, flow.generator(i)) for i in range(len(places))] == places


@given(steps=st.integers(2, 30), data=st.data())
def test_a_sliding_window_keeps_its_promises(steps: int, data: st.DataObject) -> None:
    candidates = data.draw(st.lists(st.integers(0, steps - 1), min_size=1, unique=True))
    size = data.draw(st.integers(1, len(candidates)))
    every, stride = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    made = FlowSDEConfig(sde_steps=tuple(candidates), num_sde_steps=size, slide=Slide(every=every, stride=stride))
    ordered = sorted(candidates)
    starts = []
    for iteration in range(0, 40 * every, every):
        here = {made.window(steps, iteration + i, flow.generator(iteration + i)) for i in range(every)}
        assert len(here) == 1, "it stays for `every` iterations, whatever the generator"
        (window,) = here
        assert len(window) == size
        assert window <= set(candidates)
        starts.append(ordered.index(min(window)))
        assert window == set(ordered[starts[-1] : starts[-1] + size]), "its candidates stand together"
    assert starts[0] == 0
    for now, then in itertools.pairwise(starts):
        # it moves by `stride`, less at the end, so that every candidate has its turn
        last = len(ordered) - size
        assert then == (min(now + stride, last) if now < last else 0)


@pytest.mark.parametrize("name", list(STOCHASTIC))
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"slide": {"every": 2}}, r"sampling\.dynamics\.slide: say with num_sde_steps how many steps the window has"),
        ({"slide": {}, "num_sde_steps": 4}, r"sampling\.dynamics\.num_sde_steps \(4\) is more than the 3 candidates"),
        (
            {"slide": {"every": 0}, "num_sde_steps": 1},
            r"sampling\.dynamics\.slide\.every: got 0; give a whole number of at least 1",
        ),
        (
            {"slide": {"stride": 0}, "num_sde_steps": 1},
            r"sampling\.dynamics\.slide\.stride: got 0; give a whole number of at least 1",
        ),
        ({"slide": {"evry": 3}, "num_sde_steps": 1}, r"sampling\.dynamics\.slide\.evry: unknown key; did you mean 'every'\?"),
        ({"num_sde_steps": 0}, r"sampling\.dynamics\.num_sde_steps: got 0; give a whole number of at least 1, or null"),
        ({"noise_level": 0}, r"sampling\.dynamics\.noise_level: got 0; give a number above 0 and at most \d+"),
    ],
)
def test_a_window_that_cannot_be_is_refused(load: Load, name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=rf"^config\.yaml: {sentence}$"):
        load({"sampling": {"dynamics": {"name": name, **options}}})


@pytest.mark.parametrize("name", list(STOCHASTIC))
def test_a_window_is_read_from_the_config(load: Load, name: str) -> None:
    said = {"name": name, "sde_steps": [0, 2], "num_sde_steps": 1, "slide": {"every": 4}}
    made: Any = load({"sampling": {"dynamics": said}}).sampling.dynamics
    assert isinstance(made, STOCHASTIC[name])
    assert made.slide == Slide(every=4, stride=1)
    assert [made.build("d").window(4, i, flow.generator(i)) for i in (0, 3, 4, 7, 8)] == [{0}, {0}, {2}, {2}, {0}]


@pytest.mark.parametrize("candidates", [[3], [0, 3], [3, 1]])
def test_cps_refuses_the_last_step(load: Load, candidates: list[int]) -> None:
    dynamics = {"name": "cps", "sde_steps": candidates}
    with pytest.raises(UserError, match=r"under cps the last step \(3\) arrives at sigma 0 without noise.*leave it out$"):
        load({"sampling": {"dynamics": dynamics}})
    for name in ("flow-sde", "dance-sde"):
        load({"sampling": {"dynamics": dynamics | {"name": name}}})
    load({"sampling": {"steps": 5, "dynamics": dynamics}})
    load({"sampling": {"dynamics": "cps"}})


def test_cps_has_no_level_above_one(load: Load) -> None:
    load({"sampling": {"dynamics": {"name": "cps", "noise_level": 1}}})
    with pytest.raises(UserError, match=r"noise_level: got 1\.1; give a number above 0 and at most 1$"):
        load({"sampling": {"dynamics": {"name": "cps", "noise_level": 1.1}}})


@pytest.mark.parametrize("name", list(STOCHASTIC))
def test_one_step_alone_cannot_be_stochastic(load: Load, name: str) -> None:
    with pytest.raises(UserError, match=rf"sampling\.steps: {name} needs at least 2 steps"):
        load({"sampling": {"steps": 1, "dynamics": name}})


def test_the_only_step_is_stochastic_where_it_is_named(load: Load) -> None:
    x, v = (torch.randn(4, 3, generator=flow.generator(i), dtype=torch.float64) for i in range(2))
    noise, clean = torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)
    for name, level in (("flow-sde", 0.7), ("dance-sde", 0.3)):  # 1 - sigma is borrowed from sigma 0: the spread is the level
        chosen = {"name": name, "sde_steps": [0], "noise_level": level}
        dynamics = load({"sampling": {"steps": 1, "dynamics": chosen}}).sampling.dynamics.build("d")
        assert dynamics.window(1, 0, flow.generator(0)) == {0}
        mean, std = dynamics.transition(v, x, noise, clean)
        torch.testing.assert_close(mean, x * (1 - level**2 / 2) - v)
        torch.testing.assert_close(std, torch.full_like(std, level))
    with pytest.raises(UserError, match=r"under cps the last step \(0\) arrives at sigma 0 without noise"):
        load({"sampling": {"steps": 1, "dynamics": {"name": "cps", "sde_steps": [0]}}})


def test_the_mean_of_every_dynamics_that_says_so_is_linear_in_latents_and_velocity() -> None:
    x, y, v, w = (torch.randn(5, 3, generator=flow.generator(i), dtype=torch.float64) for i in range(4))
    now = torch.tensor([1.0, 0.9, 0.6, 0.3, 0.1], dtype=torch.float64)[:, None]
    for config in (ODEConfig(), *(made() for made in STOCHASTIC.values())):
        assert config.linear
        dynamics: Any = config.build("d")

        def mean(v: torch.Tensor, x: torch.Tensor, dynamics: Any = dynamics) -> Any:
            return dynamics.transition(v, x, now, 0.8 * now).mean

        torch.testing.assert_close(mean(2 * v - w, 2 * x - y), 2 * mean(v, x) - mean(w, y), rtol=1e-10, atol=1e-10)


def test_all_steps_but_the_last_are_stochastic_when_nothing_is_said() -> None:
    for config in STOCHASTIC.values():
        assert config().build("d").window(5, 0, flow.generator(0)) == {0, 1, 2, 3}
    assert FlowSDEConfig(num_sde_steps=2).build("d").window(3, 0, flow.generator(0)) == {0, 1}
    assert ODEConfig().build("d").window(5, 0, flow.generator(0)) == frozenset()


def test_the_last_step_may_be_stochastic_and_is_finite() -> None:
    mean, std = sde().transition(scalar(0.5), scalar(1.0), scalar(0.2), scalar(0.0))
    assert float(std) == pytest.approx(0.7 * math.sqrt(0.25) * math.sqrt(0.2), rel=1e-5)
    assert bool(mean.isfinite().all())


@every_dynamics
def test_each_sample_may_be_at_a_sigma_of_its_own(made: Dynamics) -> None:
    x, v = torch.randn(3, 2, 2, generator=flow.generator(1)), torch.randn(3, 2, 2, generator=flow.generator(2))
    now, then = torch.tensor([1.0, 0.6, 0.3]).reshape(3, 1, 1), torch.tensor([0.8, 0.2, 0.0]).reshape(3, 1, 1)
    mean, std = made.transition(v, x, now, then)
    assert (mean.shape, std.shape) == (x.shape, (3, 1, 1))
    for i in range(3):
        one = made.transition(v[i : i + 1], x[i : i + 1], now[i : i + 1], then[i : i + 1])
        # what is left over at the end of a vector may be rounded otherwise
        torch.testing.assert_close(mean[i], one.mean[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(std[i], one.std[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("made", [sde(), dance()], ids=["flow-sde", "dance-sde"])
def test_the_density_is_the_mean_of_the_normals(made: Dynamics) -> None:
    transition = Transition(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[0.5], [2.0]]))
    at = torch.tensor([[0.5, 0.5], [3.0, 3.0]])
    normal: Any = torch.distributions.Normal(transition.mean, transition.std)
    torch.testing.assert_close(made.log_density(at, transition), normal.log_prob(at).mean(1))


def test_the_density_of_cps_is_minus_the_mean_squared_error() -> None:
    transition = Transition(torch.tensor([[[0.0, 1.0]], [[2.0, 3.0]]]), torch.tensor([[[0.5]], [[2.0]]]))
    at = torch.tensor([[[0.5, 0.5]], [[3.0, 5.0]]])
    # errors of a half and a half, and of one and two; the spread has no part in it
    assert cps().log_density(at, transition).tolist() == [-0.25, -2.5]


def test_the_ode_refuses_a_density() -> None:
    with pytest.raises(ValueError, match="has no log-density; choose stochastic dynamics, such as flow-sde"):
        ODE().log_density(torch.zeros(1, 1), Transition(torch.zeros(1, 1), torch.zeros(1, 1)))


@every_dynamics
def test_float32_is_enough_close_to_sigma_one(made: Dynamics) -> None:
    x, v = torch.randn(64, 4, generator=flow.generator(3)), torch.randn(64, 4, generator=flow.generator(4))
    now, then = torch.full((64, 1), 0.999), torch.full((64, 1), 0.99)
    single = made.transition(v, x, now, then)
    exact = made.transition(v.double(), x.double(), now.double(), then.double())
    torch.testing.assert_close(single.mean.double(), exact.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(single.std.double(), exact.std, rtol=1e-4, atol=0)
