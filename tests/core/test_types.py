from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.errors import RunError
from flowfactory.experience import Experience, Loss
from flowfactory.flow.dynamics import ODE
from flowfactory.types import Conditions, Evaluation, NoiseKey, SamplingPlan, Step

GROUPS = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


def conditions(samples: range) -> Conditions:
    """Those of the samples of these numbers, and a negative of each."""
    own, opposite = (tuple({"who": torch.tensor(sign * i)} for i in samples) for sign in (1, -1))
    return Conditions(own, Conditions(opposite))


def recorded(i: int, samples: range, means: bool = False) -> Step:
    """Step i of the samples; every number tells step and sample: 100 i + sample, and which tensor by its sign and share."""
    number = 100.0 * i + torch.tensor(samples, dtype=torch.float32)
    x = number[:, None].expand(-1, 2)
    mean = x + 0.75 if means else None
    return Step(x, number, conditions(samples), 2.5, ODE(), number + 0.25, x + 0.5, -number, mean)


def experience(count: int, steps: int = 3, means: bool = False, **options: Any) -> Experience:
    samples = range(count)
    rows = torch.arange(count)
    return Experience(
        latents=rows[:, None].float() / 10,
        steps=tuple(recorded(i, samples, means) for i in range(steps)),
        conditions=conditions(samples),
        plan=SamplingPlan(steps, Canvas(1, 2), 2.5, ODE(), 0, 0, tuple(NoiseKey(i, i) for i in samples)),
        rewards={"a": rows + 0.5},
        advantages=-rows.float(),
        groups=rows // 2,
        sigmas=torch.linspace(1, 0, steps + 1),
        **{"batch_size": 2, **options},
    )


def numbers(of: Experience) -> list[int]:
    """Which samples ``of`` holds, once every part agrees."""
    found: list[int] = of.latents[:, 0].mul(10).round().long().tolist()
    assert [int(a) for a in -of.advantages] == found
    assert [math.floor(r) for r in of.rewards["a"].tolist()] == found
    assert [key.prompt for key in of.plan.keys] == found
    assert_theirs(of.conditions, found)
    return found


def assert_theirs(given: Conditions, samples: list[int]) -> None:
    assert given.stack("who").tolist() == samples
    assert given.negative is not None
    assert given.negative.stack("who").tolist() == [-i for i in samples]


def assert_is(step: Step, expected: list[float], means: bool) -> None:
    """Every tensor of ``step`` holds the rows of these numbers."""
    number = torch.tensor(expected)
    x = number[:, None].expand(-1, 2)
    assert (step.guidance, type(step.dynamics)) == (2.5, ODE)
    for tensor, wanted in (
        (step.latents, x),
        (step.sigma, number),
        (step.next_sigma, number + 0.25),
        (step.next_latents, x + 0.5),
        (step.log_prob, -number),
        (step.mean, x + 0.75 if means else None),
    ):
        assert tensor is wanted is None or torch.equal(tensor, wanted)  # type: ignore[arg-type]


@given(GROUPS, st.integers(1, 8))
def test_whole_groups_are_whole_and_every_sample_comes_once(groups: list[int], batch_size: int) -> None:
    ids = torch.tensor(groups)
    pieces = list(replace(experience(len(groups)), groups=ids, batch_size=batch_size).group_batches())
    dealt = [numbers(piece) for piece in pieces]
    assert sorted(i for rows in dealt for i in rows) == list(range(len(groups)))
    held = [{groups[i] for i in rows} for rows in dealt]
    assert sum(map(len, held)) == len(set(groups))  # no group is in two pieces
    for piece, rows, of in zip(pieces, dealt, held, strict=True):
        assert piece.groups.tolist() == [groups[i] for i in rows]
        assert len(rows) <= batch_size or len(of) == 1
        for group in of:  # the members in their order, side by side
            members = [i for i in rows if groups[i] == group]
            assert members == sorted(members)
            assert rows[rows.index(members[0]) :][: len(members)] == members
    order = [group for rows in dealt for group in dict.fromkeys(groups[i] for i in rows)]
    assert order == sorted(order)
    size = {group: groups.count(group) for group in groups}
    for rows, following in zip(dealt, held[1:], strict=False):  # no piece could have taken the next group too
        assert len(rows) + size[min(following)] > batch_size


def test_groups_of_two_sizes_fill_the_pieces_in_order() -> None:
    groups = torch.tensor([7, 1, 7, 1, 4, 1, 7, 1, 7, 9])
    for batch_size, expected in (
        (4, [[1, 3, 5, 7], [4], [0, 2, 6, 8], [9]]),
        (5, [[1, 3, 5, 7, 4], [0, 2, 6, 8, 9]]),
        (3, [[1, 3, 5, 7], [4], [0, 2, 6, 8], [9]]),  # a group that is larger stands alone
        (10, [[1, 3, 5, 7, 4, 0, 2, 6, 8, 9]]),
    ):
        pieces = replace(experience(10), groups=groups, batch_size=batch_size).group_batches()
        assert [numbers(piece) for piece in pieces] == expected


@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("timesteps_per_forward", [1, 2, 3, 4])
def test_a_replay_shows_each_sample_at_each_recorded_step_once(timesteps_per_forward: int, means: bool) -> None:
    replay = list(experience(5, means=means, timesteps_per_forward=timesteps_per_forward).replay())
    joined = {1: [1, 1, 1], 2: [2, 1], 3: [3], 4: [3]}[timesteps_per_forward]
    batches = [[0, 1], [2, 3], [4]]
    expected = []
    for batch in batches:
        first = 0
        for many in joined:
            expected.append([(i, j) for i in range(first, first + many) for j in batch])
            first += many
    assert len(replay) == len(expected)
    for (samples, step), rows in zip(replay, expected, strict=True):
        assert numbers(samples) == [j for _, j in rows]
        assert samples.groups.tolist() == [j // 2 for _, j in rows]
        assert_is(step, [100.0 * i + j for i, j in rows], means)
        assert_theirs(step.conditions, [j for _, j in rows])
        assert samples.steps == ()


def test_a_replay_of_no_steps_shows_nothing() -> None:
    assert list(experience(3, steps=0).replay()) == []


@pytest.mark.parametrize("means", [False, True])
def test_joined_steps_are_their_rows_in_order(means: bool) -> None:
    steps = [recorded(4, range(2), means), recorded(1, range(3), means), recorded(2, range(1), means)]
    theirs = Conditions(tuple({"who": torch.tensor(i)} for i in (5, 4, 3, 2, 1, 0)))
    joined = Step.concatenate(steps, theirs)
    assert joined.conditions is theirs
    assert_is(joined, [400.0, 401.0, 100.0, 101.0, 102.0, 200.0], means)
    chosen = joined.rows([5, 0, 0, 3])
    assert_is(chosen, [200.0, 400.0, 400.0, 101.0], means)
    assert chosen.conditions.stack("who").tolist() == [0, 5, 5, 2]


def test_one_step_joined_is_itself_under_the_conditions_given() -> None:
    step, theirs = recorded(1, range(2), means=True), conditions(range(2))
    joined = Step.concatenate([step], theirs)
    assert joined == replace(step, conditions=theirs)
    assert joined.conditions is theirs


def test_places_without_a_transition_join_without_one() -> None:
    places = [Step(torch.full((2, 1), float(i)), torch.full((2,), i / 4), conditions(range(2)), 1.0, ODE()) for i in (3, 1)]
    joined = Step.concatenate(places, conditions(range(4)))
    assert joined.latents[:, 0].tolist() == [3, 3, 1, 1]
    assert joined.sigma.tolist() == [0.75, 0.75, 0.25, 0.25]
    assert [joined.next_latents, joined.next_sigma, joined.log_prob, joined.mean] == [None] * 4
    assert_theirs(joined.rows(range(1, 3)).conditions, [1, 2])


def test_rows_may_repeat_and_take_their_steps_along() -> None:
    chosen = experience(4, means=True).rows([3, 0, 3])
    assert numbers(chosen) == [3, 0, 3]
    assert len(chosen) == 3
    for i, step in enumerate(chosen.steps):
        assert_is(step, [100.0 * i + j for j in (3, 0, 3)], means=True)
        assert_theirs(step.conditions, [3, 0, 3])


def test_an_evaluation_without_its_graph_has_the_same_numbers() -> None:
    tensors = [torch.full((2,), float(i), requires_grad=True) * 2 for i in range(4)]
    whole = Evaluation(*tensors).detach()
    for before, after in zip(tensors, (whole.velocity, whole.mean, whole.std, whole.log_prob), strict=True):
        assert after is not None
        assert torch.equal(before, after)
        assert not after.requires_grad
    alone = Evaluation(tensors[0]).detach()
    assert (alone.mean, alone.std, alone.log_prob) == (None, None, None)


@pytest.mark.parametrize("weight", [0.5, torch.tensor([0.5, 2.0], dtype=torch.float64)])
def test_a_term_is_added_with_its_weight_and_kept_under_its_name_without(weight: float | Tensor) -> None:
    x = torch.tensor([3.0, -1.0], dtype=torch.float64, requires_grad=True)
    metric = torch.ones(2)
    plain = Loss(2 * x, metrics={"m": metric}, extremes={"e": metric}, terms={"first": x})
    loss = plain.add_term("kl", weight, x.square())
    shares = [0.5, 0.5] if isinstance(weight, float) else [0.5, 2.0]
    assert loss.values.tolist() == [6 + shares[0] * 9, -2 + shares[1] * 1]
    assert list(loss.terms) == ["first", "kl"]
    assert loss.terms["kl"].tolist() == [9, 1]
    (gradient,) = torch.autograd.grad(loss.values.sum(), x)
    assert gradient.tolist() == [2 + shares[0] * 2 * 3, 2 + shares[1] * 2 * -1]
    assert (loss.metrics, loss.extremes) == ({"m": metric}, {"e": metric})
    assert (list(plain.terms), plain.values.tolist()) == (["first"], [6, -2])  # the loss it was stays as it was


@pytest.mark.parametrize(
    ("values", "weight", "term", "told"),
    [
        ((), 1.0, (4,), r"has shape \[4\] and the loss's values \[\]"),
        ((4,), 1.0, (), r"has shape \[\] and the loss's values \[4\]"),
        ((4,), 1.0, (4, 1), r"has shape \[4, 1\] and the loss's values \[4\]"),
        ((4,), torch.ones(4, 1), (4,), r"has shape \[4, 4\] and the loss's values \[4\]"),
    ],
)
def test_a_term_has_the_shape_of_the_values(
    values: tuple[int, ...], weight: float | Tensor, term: tuple[int, ...], told: str
) -> None:
    with pytest.raises(RunError, match=rf"^the term 'kl' {told}; give both one value a sample, \[b\]$"):
        Loss(torch.ones(values)).add_term("kl", weight, torch.ones(term))


def test_recorded_steps_of_two_kinds_are_not_joined() -> None:
    conditions = Conditions(({},) * 2)
    plain = Step(torch.zeros(2, 1), torch.ones(2), conditions, 1.0, ODE())
    recorded = replace(plain, next_latents=torch.zeros(2, 1), next_sigma=torch.zeros(2), log_prob=torch.zeros(2))
    for steps in ([plain, recorded], [recorded, plain]):
        with pytest.raises(ValueError, match="record the stochastic ones alone"):
            Step.concatenate(steps, Conditions(({},) * 4))


def test_pieces_that_fit_a_forward_come_on_the_device() -> None:
    resting = experience(5, means=True, device=torch.device("meta"))
    for pieces in (resting.micro_batches(), resting.group_batches()):
        for piece in pieces:
            tensors = [piece.latents, piece.advantages]
            tensors += [
                t for step in piece.steps for t in (step.latents, step.sigma, step.next_latents, step.log_prob, step.mean)
            ]
            assert {tensor.device.type for tensor in tensors} == {"meta"}
    for _, step in resting.replay():
        assert step.next_latents is not None
        assert step.next_latents.device.type == "meta"
    assert {resting.latents.device.type, resting.steps[0].latents.device.type} == {"cpu"}
