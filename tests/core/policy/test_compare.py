from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from line import SIGMA, START, A, B, C, Line, X, by_hand, step

from flowfactory.config.component import LoraConfig, LoraTraining
from flowfactory.errors import RunError
from flowfactory.flow.dynamics import FlowSDEConfig
from flowfactory.policy.policy import REFERENCE, At
from flowfactory.types import Conditions, Evaluation, Step


@pytest.fixture
def line() -> Line:
    """The weights were A, then B, and are C; "a" and "alike" are A, "b" is B, "c" is C."""
    made = Line()
    made.move(A)
    made.policy.keep("a")
    made.policy.keep("alike")
    made.move(B)
    made.policy.keep("b")
    made.move(C)
    made.policy.keep("c")
    made.forwards.clear()
    return made


@pytest.mark.parametrize(
    ("kept", "forwards"),
    [
        ({}, 1),
        ({"now": At("c")}, 1),
        ({"now": At("c"), "again": At("c")}, 1),
        ({"old": At("b")}, 2),
        ({"now": At("c"), "old": At("b")}, 2),
        ({"one": At("a"), "other": At("alike")}, 2),
        ({"one": At("a"), "other": At("alike"), "old": At("b"), "now": At("c")}, 3),
        ({"same": At("c", 2.0)}, 1),  # the guidance of the step
        ({"guided": At("c", 5.0)}, 2),
        ({"plain": At("a"), "guided": At("a", 5.0)}, 3),
        ({"plain": At("a"), "spelt out": At("alike", 2.0)}, 2),
        ({"one": At("a", 5.0), "other": At("alike", 5.0), "now": At("c", 5.0)}, 3),
    ],
)
def test_nothing_is_evaluated_twice(line: Line, kept: dict[str, At], forwards: int) -> None:
    weights = {"a": A, "alike": A, "b": B, "c": C}
    present, found = line.policy.compare(step(2.0), kept)
    assert line.forwards == [False] * (forwards - 1) + [True]  # the present ones last, with a graph
    torch.testing.assert_close(present.velocity, by_hand(C, 2.0))
    assert list(found) == list(kept)
    for key, at in kept.items():
        torch.testing.assert_close(found[key].velocity, by_hand(weights[at.weights], at.guidance or 2.0))


def test_the_order_of_what_is_kept_does_not_matter(line: Line) -> None:
    kept = {"one": At("a"), "now": At("c"), "old": At("b"), "guided": At("c", 5.0), "other": At("alike")}
    seen = []
    for order in permutations(kept.items()):
        line.forwards.clear()
        present, found = line.policy.compare(step(), dict(order))
        seen.append([present.velocity, *(found[key].velocity for key in kept)])
        assert len(line.forwards) == 4
    for velocities in seen[1:]:
        assert all(map(torch.equal, velocities, seen[0]))


def test_the_present_ones_carry_the_gradient_they_have_alone(line: Line) -> None:
    kept = {"one": At("a"), "now": At("c"), "old": At("b"), "guided": At("c", 5.0)}
    new, found = line.policy.compare(step(2.0), kept)
    assert line.weight.tolist() == C
    loss = sum(((new.velocity - found[key].velocity).square().sum() for key in kept), torch.tensor(0.0))
    (gradient,) = torch.autograd.grad(loss, [line.weight])

    expected = torch.zeros(2, 2, dtype=torch.float64)
    x, v = X.double(), by_hand(C, 2.0).double()
    for rows, guidance in ((A, 2.0), (C, 2.0), (B, 2.0), (C, 5.0)):
        # d |v - v'|² / d A = 2 (v - v')ᵀ dv, and v = 2 x Aᵀ
        expected += 2 * (v - by_hand(rows, guidance).double()).T @ (2 * x)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-5)


def test_what_is_kept_has_no_graph_in_any_part() -> None:
    line = Line()
    line.policy.keep("old")
    dynamics = FlowSDEConfig().build("dynamics")
    recorded = Step(X, SIGMA, Conditions(({},) * 3), 1.0, dynamics, SIGMA / 2, X + 0.1, torch.zeros(3))
    for moved in (False, True):
        if moved:
            line.move(B)
        new, kept = line.policy.compare(recorded, {"old": At("old")})
        old = kept["old"]
        for mine, theirs in ((new.velocity, old.velocity), (new.mean, old.mean), (new.log_prob, old.log_prob)):
            assert mine is not None
            assert theirs is not None
            assert mine.requires_grad
            assert not theirs.requires_grad
            assert torch.equal(mine, theirs) is not moved
        assert torch.equal(new.std, old.std)  # type: ignore[arg-type]


def test_two_comparisons_may_share_one_backward_pass_while_the_kept_ones_are_present() -> None:
    line = Line()
    line.policy.keep("old")
    losses = [line.policy.compare(step(guidance), {"old": At("old")})[0].velocity.sum() for guidance in (1.0, 2.0)]
    (gradient,) = torch.autograd.grad(sum(losses), [line.weight])  # type: ignore[arg-type]
    torch.testing.assert_close(gradient, 3 * X.sum(0).expand(2, 2))


def test_whether_weights_are_present_follows_every_change(line: Line) -> None:
    policy, at = line.policy, At("c")
    assert policy.is_present(at, step())
    assert policy.is_present(At("c", 1.0), step())
    assert not policy.is_present(At("c", 5.0), step())
    assert not policy.is_present(At("b"), step())
    line.move(C)  # the same numbers, but who would know
    assert not policy.is_present(at, step())
    policy.keep("c")
    assert policy.is_present(at, step())
    with policy.using("b"):
        assert policy.is_present(At("b"), step())
        assert not policy.is_present(at, step())
    assert policy.is_present(at, step())


def test_within_other_weights_those_are_the_present_ones(line: Line) -> None:
    with line.policy.using("a"):
        line.forwards.clear()
        present, kept = line.policy.compare(step(), {"a": At("alike"), "c": At("c")})
        torch.testing.assert_close(present.velocity, by_hand(A))
        torch.testing.assert_close(kept["a"].velocity, by_hand(A))
        torch.testing.assert_close(kept["c"].velocity, by_hand(C))
        assert len(line.forwards) == 2
    assert line.weight.tolist() == C


def test_an_error_in_a_kept_ones_forward_leaves_the_present_ones_present(line: Line) -> None:
    evaluate = line.policy._evaluate

    def broken(asked: Step) -> Evaluation:
        if not torch.is_grad_enabled():
            raise ZeroDivisionError
        return evaluate(asked)

    line.policy._evaluate = broken
    with pytest.raises(ZeroDivisionError):
        line.policy.compare(step(), {"old": At("b")})
    line.policy._evaluate = evaluate
    assert line.weight.tolist() == C
    assert line.policy.is_present(At("c"), step())
    _, kept = line.policy.compare(step(), {"old": At("b"), "now": At("c")})
    torch.testing.assert_close(kept["old"].velocity, by_hand(B))
    torch.testing.assert_close(kept["now"].velocity, by_hand(C))


def test_what_was_never_kept_is_refused(line: Line) -> None:
    with pytest.raises(RunError, match=r"^no weights are kept as 'best'; "):
        line.policy.compare(step(), {"best": At("best")})
    with pytest.raises(RunError, match=r"^no weights are kept as 'best'; "):
        line.policy.is_present(At("best"), step())


@pytest.mark.parametrize("training", ["full", LoraTraining(lora=LoraConfig(rank=2, alpha=2))], ids=["full", "lora"])
def test_the_reference_costs_no_forward_until_the_weights_have_changed(training: Any) -> None:
    line = Line(training)
    line.policy.keep_reference()
    line.policy.keep("old")
    kept = {"reference": At(REFERENCE), "old": At("old")}
    _, found = line.policy.compare(step(), kept)
    assert line.forwards == [True]
    with torch.no_grad():
        for parameter in line.policy.parameters.values():
            parameter.add_(1.0)
    line.policy.mark_changed()
    line.forwards.clear()
    new, moved = line.policy.compare(step(), kept)
    assert line.forwards == [False, True]  # what was kept at the start is the reference
    for key in kept:
        torch.testing.assert_close(moved[key].velocity, by_hand(START))
        torch.testing.assert_close(found[key].velocity, by_hand(START))
    assert float((new.velocity.detach() - by_hand(START)).abs().max()) > 0.5
    line.forwards.clear()
    _, guided = line.policy.compare(step(), {"reference": At(REFERENCE, 3.0)})
    torch.testing.assert_close(guided["reference"].velocity, by_hand(START, 3.0))
    assert len(line.forwards) == 2
