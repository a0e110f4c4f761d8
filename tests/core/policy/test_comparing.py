from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from line import CPU, SIGMA, A, B, C, Line, X, by_hand

from flowfactory.errors import RunError
from flowfactory.flow.dynamics import ODE
from flowfactory.policy.comparing import At, Comparison
from flowfactory.types import Conditions, Evaluation, Step

KEPT = {"one": At("a"), "other": At("alike"), "old": At("b"), "now": At("c"), "guided": At("c", 5.0), "far": At("a", 3.0)}


@pytest.fixture
def line() -> Line:
    """The weights are C; "a" and "alike" are A, "b" is B, "c" is C."""
    made = Line()
    for rows, names in ((A, ("a", "alike")), (B, ("b",)), (C, ("c",))):
        made.move(rows)
        for name in names:
            made.policy.keep(name)
    made.forwards.clear()
    return made


@pytest.fixture
def swaps(line: Line, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each time that other weights took the place of the present ones."""
    found: list[None] = []
    swapped = line.policy._swapped
    monkeypatch.setattr(line.policy, "_swapped", lambda weights: (found.append(None), swapped(weights))[1])
    return found


def steps(count: int = 3) -> list[Step]:
    return [Step(X[: n + 1] * (n + 1), SIGMA[: n + 1], Conditions(({},) * (n + 1)), 2.0, ODE()) for n in range(count)]


def test_each_of_other_weights_is_swapped_in_once_for_all_comparisons(line: Line, swaps: list[None]) -> None:
    def asked() -> Iterator[Comparison]:
        return ((step, KEPT) for step in steps())

    alone = [line.policy.compare(step, KEPT) for step in steps()]
    assert len(swaps) == 9  # a, b and a again, under a guidance of its own, for each step
    forwards = len(line.forwards)
    line.forwards.clear()
    swaps.clear()
    with line.policy.comparing(asked, CPU):
        ahead = len(line.forwards)
        together = [line.policy.compare(step, KEPT) for step in steps()]
    assert len(swaps) == 2
    assert len(line.forwards) == forwards
    assert line.forwards == [False] * ahead + [True] * 3
    assert line.weight.tolist() == C
    for (new, kept), (other, found) in zip(alone, together, strict=True):
        assert torch.equal(new.velocity, other.velocity)
        assert other.velocity.requires_grad
        assert list(found) == list(KEPT)
        assert all(torch.equal(kept[key].velocity, found[key].velocity) for key in KEPT)
        assert not any(evaluation.velocity.requires_grad for evaluation in found.values())


def test_nothing_is_evaluated_or_gone_through_where_nothing_differs(line: Line, swaps: list[None]) -> None:
    gone_through: list[None] = []

    def asked() -> Iterator[Comparison]:
        for step in steps():
            gone_through.append(None)
            yield step, {"now": At("c")}

    with line.policy.comparing(asked):
        assert not line.forwards
        assert len(gone_through) == 1
        line.policy.compare(steps()[2], {"now": At("c")})
    with line.policy.comparing(lambda: ()):
        line.policy.compare(steps()[0], {"old": At("b")})
    assert len(swaps) == 1


def test_comparisons_of_nothing_stand_between_others(line: Line) -> None:
    kept = [{"old": At("b")}, {}, {"old": At("b")}]
    with line.policy.comparing(lambda: zip(steps(), kept, strict=True)):
        line.forwards.clear()
        found = [line.policy.compare(step, each)[1] for step, each in zip(steps(), kept, strict=True)]
        assert line.forwards == [True] * 3
    torch.testing.assert_close(found[2]["old"].velocity, (6 * X.double() @ torch.tensor(B, dtype=torch.float64).T).float())


@pytest.mark.parametrize("alike", [False, True], ids=["of other shapes", "of one shape"])
@pytest.mark.parametrize(
    "made",
    [[], [0, 1], [1, 2], [2, 1, 0], [0, 1, 1], [0, 1, 2, 2]],
    ids=["none", "no last", "no first", "reversed", "one", "more"],
)
def test_other_comparisons_than_were_named_are_refused(line: Line, made: list[int], alike: bool) -> None:
    kept = {"old": At("b")}
    named = same_shapes() if alike else steps()

    def compare_all() -> None:
        with line.policy.comparing(lambda: ((step, kept) for step in named)):
            for number in made:
                line.policy.compare(named[number], kept)

    with pytest.raises(RunError, match=r"^the algorithm's comparisons are not those that its update makes; "):
        compare_all()
    _, found = line.policy.compare(steps(3)[2], kept)  # nothing is left over
    torch.testing.assert_close(found["old"].velocity, by_hand(B, 2.0) * 3)


def same_shapes() -> list[Step]:
    """Two of the same latents, and one of others."""
    return [
        Step(latents, sigma, Conditions(({},) * 3), 2.0, ODE()) for latents, sigma in ((X, SIGMA), (X, SIGMA / 2), (-X, SIGMA))
    ]


def test_steps_that_each_pass_names_anew_are_refused(line: Line) -> None:
    passes = iter([1.0, 1.0, 2.0])  # the first look, then one for each of the kept weights

    def asked() -> Iterator[Comparison]:
        scale = next(passes)
        return ((replace(step, latents=scale * step.latents), {"old": At("b"), "older": At("a")}) for step in steps())

    def compare_all() -> None:
        with line.policy.comparing(asked):
            for step in steps():
                line.policy.compare(step, {"old": At("b"), "older": At("a")})

    with pytest.raises(RunError, match=r"^the algorithm's comparisons are not those that its update makes; "):
        compare_all()


def test_the_same_steps_are_taken_whatever_their_numbers_and_strides(line: Line) -> None:
    odd = torch.tensor([[float("nan"), -0.0], [float("inf"), 1e-40], [1.0, 2.0]])
    one = Step(odd, SIGMA.bfloat16(), Conditions(({},) * 3), 2.0, ODE(), SIGMA.double())
    other = one.map(lambda tensor: tensor.t().contiguous().t(), one.conditions)
    assert other.latents.stride() != one.latents.stride()
    with line.policy.comparing(lambda: [(one, {"old": At("b")})]):
        line.forwards.clear()
        line.policy.compare(other, {"old": At("b")})
        assert line.forwards == [True]  # what is held was taken


def test_an_error_ahead_leaves_the_present_weights_and_nothing_else(line: Line) -> None:
    evaluate = line.policy._evaluate

    def broken(step: Step) -> Evaluation:
        if len(step.latents) == 2:
            raise ZeroDivisionError
        return evaluate(step)

    line.policy._evaluate = broken
    with pytest.raises(ZeroDivisionError), line.policy.comparing(lambda: ((step, KEPT) for step in steps())):
        pass
    line.policy._evaluate = evaluate
    assert line.weight.tolist() == C
    _, found = line.policy.compare(steps()[2], {"old": At("b")})
    torch.testing.assert_close(found["old"].velocity, by_hand(B, 2.0) * 3)


def test_the_modules_are_gone_through_once_for_all_swaps(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[None] = []
    walk = line.module.named_parameters
    monkeypatch.setattr(line.module, "named_parameters", lambda *a, **k: (walks.append(None), walk(*a, **k))[1])
    line.policy._transformers._named = {}
    for name in ("a", "b", "c", "a"):
        with line.policy.using(name):
            pass
        line.policy.update_ema(name, 0.5)
    line.policy.state()
    assert len(walks) == 1
