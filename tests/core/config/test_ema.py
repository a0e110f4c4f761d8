from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from flowfactory.config import loading
from flowfactory.config.ema import Constant, Cosine, Decay, Linear, PiecewiseLinear, Power, WarmupCosine
from flowfactory.config.schema import RunConfig
from flowfactory.config.yaml import dump, parse_yaml
from flowfactory.errors import UserError

Load = Callable[..., RunConfig]
SHARES = st.floats(0, 1)
LENGTHS = st.integers(1, 50)
ITERATIONS = st.integers(0, 200)
DECAYS: TypeAdapter[Any] = TypeAdapter(Decay)


@st.composite
def points(draw: st.DrawFn) -> tuple[tuple[int, float], ...]:
    places = sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=5)))
    return tuple((place, draw(SHARES)) for place in places)


SCHEDULES = st.one_of(
    st.builds(Constant, decay=SHARES),
    st.builds(Power, power=st.floats(0.01, 20), decay=SHARES),
    st.builds(Linear, start=SHARES, end=SHARES, iterations=LENGTHS),
    st.builds(PiecewiseLinear, points=points()),
    st.builds(Cosine, start=SHARES, end=SHARES, iterations=LENGTHS),
    st.builds(WarmupCosine, warmup=LENGTHS, start=SHARES, end=SHARES, iterations=LENGTHS),
)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(decay=0.3), {0: 0.3, 1: 0.3, 10**6: 0.3}),
        (Power(power=1, decay=1), {0: 0, 1: 1 / 2, 2: 2 / 3, 99: 0.99}),
        (Power(power=0.75, decay=0.999), {0: 0, 15: 7 / 8, 80: 26 / 27, 255: 63 / 64}),  # 16, 81 and 256 are fourth powers
        (Power(power=0.75, decay=0.5), {0: 0, 1: 1 - 2**-0.75, 15: 0.5, 80: 0.5, 10**9: 0.5}),
        (Linear(start=0.2, end=0.8, iterations=4), {0: 0.2, 1: 0.35, 2: 0.5, 3: 0.65, 4: 0.8, 5: 0.8, 1000: 0.8}),
        (Linear(start=1, end=0, iterations=2), {0: 1, 1: 0.5, 2: 0, 3: 0}),
        (PiecewiseLinear(points=((2, 0.1), (4, 0.5), (10, 0.2))), {0: 0.1, 2: 0.1, 3: 0.3, 4: 0.5, 6: 0.4, 10: 0.2, 11: 0.2}),
        (PiecewiseLinear(points=((3, 0.25),)), {0: 0.25, 3: 0.25, 4: 0.25}),
        (PiecewiseLinear(points=((0, 0), (500, 0.5))), {0: 0, 1: 0.001, 250: 0.25, 500: 0.5, 10**6: 0.5}),
        # (1 - cos) / 2 of 0, 30°, 60°, 90°, 120° and 180°
        (
            Cosine(start=0.2, end=0.8, iterations=6),
            {0: 0.2, 1: 0.2 + 0.3 * (1 - math.sqrt(3) / 2), 2: 0.35, 3: 0.5, 4: 0.65, 6: 0.8, 7: 0.8, 99: 0.8},
        ),
        (Cosine(start=1, end=0.5, iterations=2), {0: 1, 1: 0.75, 2: 0.5, 3: 0.5}),
        (
            WarmupCosine(warmup=4, start=0.4, end=0.8, iterations=6),
            {0: 0, 1: 0.1, 3: 0.3, 4: 0.4, 6: 0.5, 7: 0.6, 8: 0.7, 10: 0.8, 11: 0.8, 500: 0.8},
        ),
        (WarmupCosine(warmup=1, start=0.9, end=0.3, iterations=2), {0: 0, 1: 0.9, 2: 0.6, 3: 0.3, 4: 0.3}),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)
def test_a_schedule_gives_what_its_formula_gives(schedule: Callable[[int], float], expected: dict[int, float]) -> None:
    assert {n: schedule(n) for n in expected} == pytest.approx(expected, abs=1e-12)


@given(SCHEDULES, ITERATIONS)
def test_what_is_kept_is_a_share(schedule: Callable[[int], float], iteration: int) -> None:
    assert 0 <= schedule(iteration) <= 1


@given(points(), ITERATIONS)
def test_between_points_it_interpolates_as_numpy_does(given_points: tuple[tuple[int, float], ...], iteration: int) -> None:
    places, shares = zip(*given_points, strict=True)
    expected = float(np.interp(iteration, places, shares))
    assert PiecewiseLinear(points=given_points)(iteration) == pytest.approx(expected, abs=1e-12)


@given(SHARES, SHARES, LENGTHS, LENGTHS, st.floats(0.01, 3))
def test_from_a_low_share_to_a_high_one_it_never_turns_back(
    one: float, other: float, warmup: int, length: int, power: float
) -> None:
    start, end = sorted((one, other))
    for schedule in (
        Power(power=power, decay=end),
        Linear(start=start, end=end, iterations=length),
        Cosine(start=start, end=end, iterations=length),
        WarmupCosine(warmup=warmup, start=start, end=end, iterations=length),
    ):
        kept = [schedule(n) for n in range(120)]
        assert all(later >= earlier - 1e-12 for earlier, later in pairwise(kept))
        if not isinstance(schedule, Power):
            assert kept[-1] == pytest.approx(end, abs=1e-12)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30))
def test_a_power_of_one_keeps_the_mean_of_all_so_far(weights: list[float]) -> None:
    schedule, average = Power(power=1, decay=1), 1e6  # what was there before the first does not count
    for n, weight in enumerate(weights):
        average = schedule(n) * average + (1 - schedule(n)) * weight
        assert average == pytest.approx(math.fsum(weights[: n + 1]) / (n + 1), abs=1e-9)


@pytest.mark.parametrize(
    ("average", "sentence"),
    [
        ({"name": "constant", "decay": 1.5}, r"ema\.decay: got 1\.5; give a number from 0 to 1"),
        ({"name": "constant", "decay": -0.1}, r"ema\.decay: got -0\.1; give a number from 0 to 1"),
        ({"name": "constant", "decay": math.nan}, r"ema\.decay: got \.nan; give a number from 0 to 1 that is finite"),
        ({"name": "constant", "decey": 0.5}, r"ema\.decey: unknown key; did you mean 'decay'\?"),
        ({"name": "power", "power": 0}, r"ema\.power: got 0; give a number above 0 and at most 100"),
        ({"name": "linear", "strat": 1}, r"ema\.strat: unknown key; did you mean 'start'\?"),
        ({"name": "linear", "iterations": 0}, r"ema\.iterations: got 0; give a whole number from 1 to 10000000"),
        ({"name": "cosine", "end": 2}, r"ema\.end: got 2; give a number from 0 to 1"),
        ({"name": "warmup-cosine", "warmup": 0}, r"ema\.warmup: got 0; give a whole number from 1 to 10000000"),
        (
            {"name": "piecewise-linear"},
            r"ema\.points: this key is missing; give .* such as \[\[0, 0\], \[100, 0\.9\]\], decays from 0 to 1",
        ),
        ({"name": "piecewise-linear", "points": []}, r"ema\.points: got \[\]; give .*, decays from 0 to 1"),
        (
            {"name": "piecewise-linear", "points": [[5, 0.1], [3, 0.2]]},
            r"ema\.points: give the points in order, each iteration once",
        ),
        (
            {"name": "piecewise-linear", "points": [[3, 0.1], [3, 0.2]]},
            r"ema\.points: give the points in order, each iteration once",
        ),
        (
            {"name": "piecewise-linear", "points": [[0, 0.1], [3, 1.5]]},
            r"ema\.points: got \[\[0, 0\.1\], \[3, 1\.5\]\]; give .*, decays from 0 to 1",
        ),
        (
            {"name": "piecewise-linear", "points": [[0.5, 0.1]]},
            r"ema\.points: got \[\[0\.5, 0\.1\]\]; give .*, decays from 0 to 1",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_in_one_line_that_names_the_key(
    load: Load, average: dict[str, Any], sentence: str
) -> None:
    for section in ("evaluation", "sampling"):
        with pytest.raises(UserError, match=rf"^config\.yaml: {section}\.{sentence}$"):
            load({section: {"ema": average}})


@pytest.mark.parametrize(
    ("average", "sentence"),
    [
        ({"name": "cosin"}, r"ema: there is no 'cosin'; did you mean 'cosine'\?"),
        ("cosin", r"ema: there is no 'cosin'; did you mean 'cosine'\?"),
        (
            "piecewise-linear",
            r"ema\.points: this key is missing; give .* such as \[\[0, 0\], \[100, 0\.9\]\], decays from 0 to 1",
        ),
        ({"decay": 0.5}, r"ema: say which with 'name'; there is constant, .*"),
        ({"name": 3}, r"ema: .*"),
        (0.5, r"ema: .*"),
        ([0.5], r"ema: .*"),
    ],
)
def test_a_schedule_without_a_known_name_is_refused_in_one_line(load: Load, average: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"^config\.yaml: evaluation\.{sentence}$"):
        load({"evaluation": {"ema": average}})


def test_a_mistake_in_a_schedule_on_the_command_line_is_blamed_on_it(load: Load) -> None:
    with pytest.raises(UserError, match=r"^--set evaluation\.ema\.decay: got 2; give a number from 0 to 1$"):
        load(sets=["evaluation.ema={name: constant, decay: 2}"])
    made = load(sets=["evaluation.ema.name=linear", "evaluation.ema.end=0.5"])
    assert made.evaluation.ema == Linear(end=0.5)


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("constant", Constant(decay=0.9)),
        ("power", Power(power=0.75, decay=0.999)),
        ("{name: power, decay: 0.99}", Power(power=0.75, decay=0.99)),
        ("{name: linear, end: 1}", Linear(start=0, end=1, iterations=100)),
        ("{name: piecewise-linear, points: [[0, 0], [75, 0.5]]}", PiecewiseLinear(points=((0, 0.0), (75, 0.5)))),
        ("{name: cosine, iterations: 7}", Cosine(start=0, end=0.999, iterations=7)),
        ("{name: warmup-cosine, warmup: 3}", WarmupCosine(warmup=3, start=0.5, end=0.999, iterations=100)),
    ],
)
def test_a_schedule_that_gives_little_reads_back_to_the_same_with_all_of_it(
    load: Load, tmp_path: Path, text: str, schedule: Any
) -> None:
    made = load({"evaluation": {"ema": yaml.safe_load(text)}, "sampling": {"ema": yaml.safe_load(text)}})
    assert made.evaluation.ema == made.sampling.ema == schedule
    written = dump(made)
    (tmp_path / "again.yaml").write_text(written)
    again = loading.load(tmp_path / "again.yaml")
    assert again.evaluation.ema == again.sampling.ema == schedule
    assert dump(again) == written
    assert set(yaml.safe_load(written)["evaluation"]["ema"]) == {"name", *type(schedule).model_fields}


def test_no_schedule_is_no_average(load: Load) -> None:
    made = load()
    assert (made.sampling.ema, made.evaluation.ema) == (None, None)
    assert yaml.safe_load(dump(made))["evaluation"]["ema"] is None


@given(SCHEDULES)
def test_every_schedule_survives_its_own_yaml(schedule: Any) -> None:
    text = yaml.safe_dump(schedule.model_dump(mode="json"))
    assert DECAYS.validate_python(parse_yaml(text, "here")) == schedule


def test_the_published_decay_of_optimizer_steps_is_a_line_that_counts_steps() -> None:
    decay = TypeAdapter(Decay).validate_python({"name": "linear", "end": 0.3, "iterations": 300, "counted": "steps"})
    assert [decay(n) for n in (0, 1, 150, 300, 5000)] == pytest.approx([0, 0.001, 0.15, 0.3, 0.3])


def test_a_warm_up_is_quick_at_first_and_bounded() -> None:
    decay = TypeAdapter(Decay).validate_python({"name": "warm-up", "decay": 0.9})
    assert [decay(n) for n in (0, 8, 80, 10_000)] == pytest.approx([0.1, 0.5, 0.9, 0.9])
