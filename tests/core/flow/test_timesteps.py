from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, SigmoidTransform, TransformedDistribution

from flowfactory import Canvas, flow
from flowfactory.config import loading, yaml
from flowfactory.config.schema import RunConfig
from flowfactory.data.batches import make_batch
from flowfactory.errors import RunError, UserError
from flowfactory.experience import Experience
from flowfactory.flow.dynamics import ODE
from flowfactory.flow.timesteps import (
    Discrete,
    LogitNormal,
    NoisedBatch,
    Uniform,
    noised_batches,
    noised_micro_batches,
    shift_sigma,
)
from flowfactory.types import Conditions, NoiseKey, Prompt, SamplingPlan

Load = Callable[..., RunConfig]
Times = Discrete | Uniform | LogitNormal
ALL: list[Times] = [Discrete(count=3), Uniform(count=3), LogitNormal(count=3)]
SCHEDULE = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])
SHAPE = (1, 2, 2)


def drawn(times: Times, count: int, schedule: Tensor = SCHEDULE) -> Tensor:
    """[count, times.count], float64, from as many generators."""
    return torch.stack([times.sigmas(schedule, flow.generator("test", i)) for i in range(count)]).double()


def insist_on_uniform(values: Tensor) -> None:
    """Kolmogorov-Smirnov: values further from Uniform(0, 1) come once in a thousand."""
    n = values.numel()
    ordered, places = values.flatten().sort().values, torch.arange(n, dtype=torch.float64)
    distance = torch.maximum(ordered - places / n, (places + 1) / n - ordered).max()
    assert float(distance) < 1.95 / math.sqrt(n)


def below(sigma: Tensor | float, mean: float, std: float) -> Tensor:
    """The share of a logit-normal below sigma, as torch.distributions has it."""
    loc, scale = (torch.tensor(value, dtype=torch.float64) for value in (mean, std))
    share: Tensor = TransformedDistribution(Normal(loc, scale), SigmoidTransform()).cdf(
        torch.as_tensor(sigma, dtype=torch.float64)
    )
    return share


def parts(shares: Tensor) -> list[set[int]]:
    """For each of the times which of the equal parts of [0, 1) it fell into, over all draws."""
    return [set(column.tolist()) for column in (shares * shares.shape[1]).floor().long().T]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.25, 0.75), (0.4, 1.0)])
def test_uniform_times_are_uniform_between_low_and_high(low: float, high: float) -> None:
    found = drawn(Uniform(count=4, low=low, high=high, stratified=False), 500)
    assert found.shape == (500, 4)
    assert low <= float(found.min()) < float(found.max()) <= high
    insist_on_uniform((found - low) / (high - low))
    assert all(len(seen) == 4 for seen in parts((found - low) / (high - low)))  # any time may fall anywhere


@pytest.mark.parametrize("count", [1, 2, 5])
def test_stratified_uniform_times_are_one_in_each_of_count_equal_parts(count: int) -> None:
    share = (drawn(Uniform(count=count, low=0.2, high=0.6), 400) - 0.2) / 0.4
    assert parts(share) == [{i} for i in range(count)]
    insist_on_uniform(share * count - torch.arange(count))  # and uniform within it


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.5), (1.2, 2.0)])
def test_the_logit_of_a_logit_normal_time_is_normal(mean: float, std: float) -> None:
    found = drawn(LogitNormal(count=4, mean=mean, std=std, stratified=False), 500)
    insist_on_uniform(Normal(mean, std).cdf(torch.logit(found)))
    assert float(torch.logit(found).mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(2000))
    assert float(torch.logit(found).std()) == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.3, 1.0), (0.0, 0.8), (0.6, 0.65)])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.6)])
def test_logit_normal_times_are_truncated_and_one_in_each_of_count_parts(
    low: float, high: float, mean: float, std: float
) -> None:
    found = drawn(LogitNormal(count=3, mean=mean, std=std, low=low, high=high), 300)
    assert low <= float(found.min()) < float(found.max()) <= high
    share = (below(found, mean, std) - below(low, mean, std)) / (below(high, mean, std) - below(low, mean, std))
    assert parts(share) == [{0}, {1}, {2}]
    insist_on_uniform(share * 3 - torch.arange(3))


def test_without_strata_each_time_is_truncated_on_its_own() -> None:
    found = drawn(LogitNormal(count=2, low=0.3, high=0.8, stratified=False), 800)
    insist_on_uniform((below(found, 0, 1) - below(0.3, 0, 1)) / (below(0.8, 0, 1) - below(0.3, 0, 1)))
    assert [set((column > 0.5).tolist()) for column in found.T] == [{False, True}] * 2


@given(st.floats(0, 1), st.floats(0.1, 10))
def test_the_shift_is_the_schedulers_formula(sigma: float, shift: float) -> None:
    value = torch.tensor([sigma], dtype=torch.float64)
    moved = float(shift_sigma(value, shift))
    assert moved == pytest.approx(shift * sigma / (1 + (shift - 1) * sigma), abs=1e-12)
    assert 0 <= moved <= 1 + 1e-12
    assert (moved - sigma) * (shift - 1) >= -1e-12  # above 1 towards noise, below 1 towards clean
    assert float(shift_sigma(shift_sigma(value, shift), 1 / shift)) == pytest.approx(sigma, abs=1e-9)


@pytest.mark.parametrize("shift", [3.0, 0.5])
def test_the_shift_is_that_of_diffusers(shift: float) -> None:
    schedulers = pytest.importorskip("diffusers.schedulers", reason="diffusers is not here")
    plain, moved = (
        schedulers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=s).sigmas.double() for s in (1.0, shift)
    )
    torch.testing.assert_close(shift_sigma(plain, shift), moved, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [Uniform, LogitNormal])
def test_shifted_times_are_those_without_a_shift_moved_towards_noise(kind: type[Uniform] | type[LogitNormal]) -> None:
    plain, moved = (drawn(kind(count=2, low=0.2, high=0.7, shift=s), 100) for s in (1.0, 4.0))
    torch.testing.assert_close(moved, 4 * plain / (1 + 3 * plain), rtol=0, atol=1e-6)
    assert bool((moved > plain).all())
    assert float(moved.max()) > 0.7  # low and high are before the shift


def test_discrete_times_are_each_ordered_pair_of_the_schedules_steps_equally_often() -> None:
    pairs = Counter(tuple(row) for row in drawn(Discrete(count=2), 2400).tolist())
    steps = SCHEDULE[:-1].double().tolist()
    assert set(pairs) == set(permutations(steps, 2))  # without replacement, and never the clean end
    assert all(abs(count - 200) < 5 * math.sqrt(200) for count in pairs.values())


def test_without_the_initial_one_discrete_times_are_the_other_steps() -> None:
    found = drawn(Discrete(count=3, initial=False), 50)
    assert {tuple(sorted(row)) for row in found.tolist()} == {tuple(SCHEDULE[1:4].double().sort().values.tolist())}
    assert {float(row[0]) for row in found} == set(SCHEDULE[1:4].double().tolist())


def test_discrete_times_lie_between_low_and_high_inclusive() -> None:
    assert {float(s) for s in drawn(Discrete(count=1, low=0.4, high=0.9), 60)} == set(SCHEDULE[1:4].double().tolist())
    assert {float(s) for s in drawn(Discrete(count=1, low=0.41, high=0.89), 60)} == set(SCHEDULE[2:3].double().tolist())


@pytest.mark.parametrize(
    ("times", "there"), [(Discrete(count=3, low=0.5, high=0.95), 2), (Discrete(count=1, low=0.2, high=0.3), 0)]
)
def test_too_few_steps_between_low_and_high_are_told_in_one_line(times: Discrete, there: int) -> None:
    with pytest.raises(RunError) as refused:
        list(noised_batches(made(), times))
    assert str(refused.value) == (
        f"algorithm.timesteps: {there} sampling steps lie between low {times.low} and high {times.high}, "
        f"fewer than count {times.count}"
    )


def made(
    prompts: Sequence[int] = (0, 1, 2), group_size: int = 3, seed: int = 7, iteration: int = 2, **options: Any
) -> Experience:
    """What was drawn for prompts of these numbers; the clean latents depend on the sample's key alone."""
    batch = make_batch([Prompt(f"prompt {number}", number) for number in prompts], group_size)
    latents = torch.stack([torch.randn(SHAPE, generator=flow.generator("clean", *key)) for key in batch.keys])
    entries = tuple({"who": torch.tensor(key)} for key in batch.keys)
    plan = SamplingPlan(4, Canvas(2, 2), 3.5, ODE(), seed, iteration, batch.keys)
    return Experience(
        latents=latents,
        steps=(),
        conditions=Conditions(entries),
        plan=plan,
        rewards={"a": torch.arange(len(latents)) / 10},
        advantages=torch.arange(len(latents)) - 3.0,
        groups=batch.groups,
        sigmas=SCHEDULE,
        **{"batch_size": 4, **options},
    )


Place = tuple[NoiseKey, int]


def by_key(experience: Experience, times: Times, shared: bool = False) -> dict[Place, tuple[float, tuple[float, ...]]]:
    """(sigma, noise) of each sample at each of its times."""
    found = {}
    blank = replace(experience, latents=torch.zeros_like(experience.latents))  # so that the target is the noise, exactly
    for at in noised_batches(blank, times, shared):
        for i, key in enumerate(at.samples.plan.keys):
            found[key, int(at.time[i])] = (float(at.step.sigma[i]), tuple(at.target[i].flatten().tolist()))
    return found


@pytest.mark.parametrize("times", ALL, ids=lambda times: times.name)
@pytest.mark.parametrize("timesteps_per_forward", [1, 2, 3, 5])
def test_latents_lie_on_the_line_from_clean_to_noise_and_the_target_points_along_it(
    times: Times, timesteps_per_forward: int
) -> None:
    experience = made(timesteps_per_forward=timesteps_per_forward)
    for at in noised_batches(experience, times):
        s = at.step.sigma.double().reshape(-1, 1, 1, 1)
        clean, target, latents = at.samples.latents.double(), at.target.double(), at.step.latents.double()
        noise = target + clean
        torch.testing.assert_close(latents, (1 - s) * clean + s * noise, rtol=0, atol=1e-6)
        torch.testing.assert_close(latents - s * target, clean, rtol=0, atol=1e-6)


def test_the_noise_is_standard_normal_and_independent_of_the_times_and_of_the_samples_own() -> None:
    experience = made(prompts=range(40), group_size=5)
    (at,) = noised_batches(experience, Uniform(count=1))
    noise = (at.target + at.samples.latents).double()
    insist_on_uniform(Normal(0.0, 1.0).cdf(noise))
    began = flow.noise(experience.plan, SHAPE).double()
    for other in (at.step.sigma.double().reshape(-1, 1, 1, 1).expand_as(noise), began, at.samples.latents.double()):
        correlation = torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]
        assert abs(float(correlation)) < 4 / math.sqrt(800)


@pytest.mark.parametrize("shared", [False, True])
def test_a_row_is_its_samples_own_in_every_part(shared: bool) -> None:
    experience = made(timesteps_per_forward=2)
    pieces = list(noised_batches(experience, Uniform(count=3), shared))
    assert [len(at) for at in pieces] == [18, 9]
    for at in pieces:
        for i, key in enumerate(at.samples.plan.keys):
            source = experience.plan.keys.index(key)
            assert at.step.conditions.entries[i]["who"].tolist() == list(key)
            assert torch.equal(at.samples.latents[i], experience.latents[source])
            assert at.samples.advantages[i] == experience.advantages[source]
            assert at.samples.rewards["a"][i] == experience.rewards["a"][source]
            assert at.samples.groups[i] == experience.groups[source]
        assert (at.step.guidance, at.step.dynamics) == (3.5, experience.plan.dynamics)
        assert at.step.next_latents is None  # a place to ask for the velocity


@pytest.mark.parametrize("times", ALL, ids=lambda times: times.name)
@pytest.mark.parametrize("shared", [False, True])
def test_how_many_times_share_a_forward_changes_nothing_but_how_rows_are_joined(times: Times, shared: bool) -> None:
    def joined(timesteps_per_forward: int) -> list[Tensor]:
        pieces = list(noised_batches(made(timesteps_per_forward=timesteps_per_forward), times, shared))
        assert len(pieces) == math.ceil(3 / timesteps_per_forward)
        return [
            torch.cat(column)
            for column in zip(*((at.step.latents, at.step.sigma, at.target, at.time) for at in pieces), strict=True)
        ]

    one = joined(1)
    assert one[3].tolist() == [0] * 9 + [1] * 9 + [2] * 9
    for timesteps_per_forward in (2, 3, 7):
        assert all(map(torch.equal, joined(timesteps_per_forward), one))


@pytest.mark.parametrize("times", ALL, ids=lambda times: times.name)
@pytest.mark.parametrize("shared", [False, True])
def test_times_and_noise_are_the_samples_own_whatever_stands_beside_it(times: Times, shared: bool) -> None:
    experience = made(timesteps_per_forward=2)
    whole = by_key(experience, times, shared)
    assert len(whole) == 27
    for order in (list(reversed(range(9))), [4, 0, 8], [7]):
        found = by_key(experience.rows(order), times, shared)
        assert found == {(key, j): whole[key, j] for key in (experience.plan.keys[i] for i in order) for j in range(3)}
    pieces: dict[Place, Any] = {}
    for batch in replace(experience, batch_size=2).micro_batches():
        pieces |= by_key(batch, times, shared)
    assert pieces == whole


@pytest.mark.parametrize("times", ALL, ids=lambda times: times.name)
@pytest.mark.parametrize("shared", [False, True])
def test_another_epoch_iteration_or_seed_draws_others(times: Times, shared: bool) -> None:
    experience = made()
    whole = by_key(experience, times, shared)
    assert by_key(made(), times, shared) == whole
    for other in (replace(experience, epoch=1), made(iteration=3), made(seed=8)):
        found = by_key(other, times, shared)
        assert all(found[place][1] != whole[place][1] for place in whole)
        assert any(found[place][0] != whole[place][0] for place in whole)


@pytest.mark.parametrize("times", [Uniform(count=3), LogitNormal(count=3)], ids=lambda times: times.name)
def test_every_prompt_member_and_time_has_noise_and_a_time_of_its_own(times: Times) -> None:
    whole = by_key(made(), times)
    assert len({sigma for sigma, _ in whole.values()}) == len({noise for _, noise in whole.values()}) == 27


@pytest.mark.parametrize("times", ALL, ids=lambda times: times.name)
def test_a_shared_place_is_the_same_within_a_group_alone(times: Times) -> None:
    experience = made(prompts=(0, 1, 0))  # the first prompt comes twice
    whole = by_key(experience, times, shared=True)
    of_group: dict[tuple[int, int], set[Any]] = {}
    for i, key in enumerate(experience.plan.keys):
        for j in range(3):
            of_group.setdefault((int(experience.groups[i]), j), set()).add(whole[key, j])
    assert {len(seen) for seen in of_group.values()} == {1}
    assert len({noise for _, noise in whole.values()}) == 9
    if not isinstance(times, Discrete):
        assert len({sigma for sigma, _ in whole.values()}) == 9
    own = by_key(experience, times)
    assert not {noise for _, noise in own.values()} & {noise for _, noise in whole.values()}
    said = {answer: times.model_copy(update={"shared": answer}) for answer in (True, False)}  # the config has the last word
    for algorithms_own in (True, False):
        assert by_key(experience, said[True], algorithms_own) == whole
        assert by_key(experience, said[False], algorithms_own) == own


@given(
    groups=st.lists(st.integers(0, 2**40), min_size=1, max_size=6),
    count=st.integers(1, 4),
    timesteps_per_forward=st.integers(1, 4),
)
def test_rows_share_an_id_just_where_group_and_time_are_the_same(
    groups: list[int], count: int, timesteps_per_forward: int
) -> None:
    experience = made(prompts=(0,), group_size=len(groups), timesteps_per_forward=timesteps_per_forward)
    for at in noised_batches(replace(experience, groups=torch.tensor(groups)), Uniform(count=count)):
        ids: dict[int, set[tuple[int, int]]] = {}
        for row, group, time in zip(at.groups.tolist(), at.samples.groups.tolist(), at.time.tolist(), strict=True):
            ids.setdefault(row, set()).add((group, time))
        assert all(len(seen) == 1 for seen in ids.values())
        assert len(ids) == len(set(groups)) * len(set(at.time.tolist()))


@pytest.mark.parametrize(("batch_size", "timesteps_per_forward", "sizes"), [(4, 1, [4, 4, 1]), (4, 2, [8, 8, 2]), (20, 1, [9])])
def test_pieces_fit_one_forward_and_keep_the_rows_in_order(
    batch_size: int, timesteps_per_forward: int, sizes: list[int]
) -> None:
    at = next(noised_batches(made(batch_size=batch_size, timesteps_per_forward=timesteps_per_forward), Uniform(count=4)))
    pieces = at.micro_batches()
    assert [len(piece) for piece in pieces] == sizes
    for piece in pieces:
        assert len(piece.step.latents) == len(piece.samples) == len(piece.step.conditions) == len(piece.target)

    def columns(pieces: list[NoisedBatch]) -> list[Tensor]:
        parts = [(p.step.latents, p.step.sigma, p.target, p.time, p.samples.advantages, p.samples.groups) for p in pieces]
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    assert all(map(torch.equal, columns(pieces), columns([at])))
    keys = tuple(key for piece in pieces for key in piece.samples.plan.keys)
    assert keys == at.samples.plan.keys
    shown = [entry["who"].tolist() for piece in pieces for entry in piece.step.conditions.entries]
    assert shown == [list(key) for key in keys]


def test_half_precision_latents_are_rounded_and_the_target_is_not() -> None:
    experience = made()
    rounded = replace(experience, latents=experience.latents.bfloat16())
    (at,) = noised_batches(rounded, Uniform(count=1))
    s = at.step.sigma.reshape(-1, 1, 1, 1)
    assert at.step.latents.dtype == torch.bfloat16
    assert at.target.dtype == torch.float32
    clean = rounded.latents.float()
    torch.testing.assert_close(at.step.latents.float(), clean + s * at.target, rtol=2**-8, atol=2**-8)
    (full,) = noised_batches(replace(rounded, latents=clean), Uniform(count=1))
    assert torch.equal(at.target, full.target)
    assert torch.equal(at.step.latents, full.step.latents.bfloat16())


@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        ({"name": "uniform", "low": 0.5, "high": 0.5}, r"algorithm\.timesteps: low \(0\.5\) must be below high \(0\.5\)"),
        ({"name": "logit-normal", "low": 0.7, "high": 0.2}, r"algorithm\.timesteps: low \(0\.7\) must be below high \(0\.2\)"),
        ({"name": "discrete", "low": 0.7, "high": 0.2}, r"algorithm\.timesteps: low \(0\.7\) must be below high \(0\.2\)"),
        (
            {"name": "discrete", "count": 5},
            r"algorithm\.timesteps\.count \(5\) is more than the 4 sampling steps there are; lower it.*",
        ),
        (
            {"name": "discrete", "count": 4, "initial": False},
            r"algorithm\.timesteps\.count \(4\) is more than the 3 sampling steps there are; lower it.*",
        ),
        ({"name": "uniform", "count": 0}, r"algorithm\.timesteps\.count: got 0; give a whole number from 1 to 1000"),
        ({"name": "uniform", "low": -0.1}, r"algorithm\.timesteps\.low: got -0\.1; give a number of at least 0 and below 1"),
        ({"name": "uniform", "high": 1.1}, r"algorithm\.timesteps\.high: got 1\.1; give a number above 0 and at most 1"),
        (
            {"name": "uniform", "shift": 0},
            r"algorithm\.timesteps\.shift: got 0; give a number above 0 and at most 100, or model",
        ),
        (
            {"name": "logit-normal", "std": 0},
            r"algorithm\.timesteps\.std: got 0; give a number above 0 and at most 100",
        ),
        ({"name": "uniform", "std": 1}, r"algorithm\.timesteps\.std: unknown key; .*"),
        ({"name": "discrete", "shift": 3}, r"algorithm\.timesteps\.shift: unknown key; .*"),
        ({"name": "logitnormal"}, r"algorithm\.timesteps: there is no 'logitnormal'; did you mean 'logit-normal'\?"),
        ("unifrom", r"algorithm\.timesteps: there is no 'unifrom'; did you mean 'uniform'\?"),
        ({"count": 3}, r"algorithm\.timesteps: say which with 'name'; there is discrete, logit-normal, uniform"),
    ],
)
def test_times_that_cannot_be_are_refused_in_one_line_that_names_the_key(
    load: Load, matching: Callable[..., dict[str, Any]], times: Any, sentence: str
) -> None:
    with pytest.raises(UserError, match=rf"^config\.yaml: {sentence}$"):
        load(matching(timesteps=times))


def test_as_many_times_as_there_are_steps_will_do(load: Load, matching: Callable[..., dict[str, Any]]) -> None:
    load(matching(timesteps={"name": "discrete", "count": 4}))
    load(matching(timesteps={"name": "discrete", "count": 3, "initial": False}))
    load(matching(timesteps={"name": "uniform", "count": 40}))


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ("discrete", Discrete(count=2, initial=True, low=0, high=1)),
        ("logit-normal", LogitNormal(mean=0, std=1, shift=1)),
        ({"name": "uniform", "shift": 3}, Uniform(count=2, shift=3.0, stratified=True)),
        ({"name": "logit-normal", "mean": -0.5}, LogitNormal(count=2, mean=-0.5, std=1.0)),
    ],
)
def test_times_that_give_little_read_back_to_the_same_with_all_of_it(
    load: Load, matching: Callable[..., dict[str, Any]], times: Any, expected: Times
) -> None:
    made: Any = load(matching(timesteps=times))
    assert made.algorithm.timesteps == expected
    text = yaml.dump(made)
    again: Any = loading.validate(yaml.parse_yaml(text, "again"))
    assert again.algorithm.timesteps == expected
    assert yaml.dump(again) == text


@pytest.mark.parametrize("options", [{"std": 0.1, "low": 0.9}, {"std": 0.1, "high": 0.1}, {"low": 0.998}])
def test_bounds_hold_far_in_a_tail_too(options: dict[str, float]) -> None:
    found = drawn(LogitNormal(count=4, **options), 20)
    assert options.get("low", 0.0) <= float(found.min()) <= float(found.max()) <= options.get("high", 1.0)


def test_places_are_on_the_device_though_samples_rest_elsewhere() -> None:
    resting = replace(made(), device=torch.device("meta"))
    for at in noised_batches(resting, Uniform(count=2)):
        for tensor in (at.step.latents, at.step.sigma, at.target, at.samples.latents, at.samples.advantages):
            assert tensor.device.type == "meta"
    assert resting.latents.device.type == "cpu"


@pytest.mark.parametrize("shared", [True, False])
def test_piece_by_piece_each_piece_that_fits_a_forward_is_noised_as_it_is_alone(shared: bool) -> None:
    experience = replace(made(timesteps_per_forward=2), batch_size=3)
    found = list(noised_micro_batches(experience, Uniform(count=3), shared))
    expected = [at for batch in experience.micro_batches() for at in noised_batches(batch, Uniform(count=3), shared)]
    assert len(found) == len(expected) > 2
    assert max(map(len, found)) <= 3 * 2
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.step.latents, other.step.latents)
        assert torch.equal(one.target, other.target)
