"""Properties of an algorithm's losses on the learning bench. Each raises AssertionError with what is off."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from flowfactory.experience import Loss
from flowfactory.testing.learning_bench import Learning, Weights

BEYOND_THE_CLIP = {(good, side) for good in (True, False) for side in ("above", "below")}
"""What :func:`check_clip` has to have seen for a test of the clip to be worth its name."""


def check_losses(
    run: Learning,
    expected: Sequence[tuple[Tensor, Tensor]],
    values: tuple[float, float] = (1e-5, 1e-5),
    gradients: tuple[float, float] = (1e-4, 2e-5),
) -> list[Loss]:
    """The losses of an update, after each has the values [b] and the gradients [b, 2] of its pair in ``expected``, in order.

    Of what was worked out by hand in float64. ``values`` and ``gradients`` are (relative, absolute) tolerances.
    """
    losses = run.losses()
    assert len(losses) == len(expected), f"an update has {len(losses)} losses, not {len(expected)}"
    for loss, (value, gradient) in zip(losses, expected, strict=True):
        torch.testing.assert_close(loss.values.detach().double(), value, rtol=values[0], atol=values[1])
        torch.testing.assert_close(run.gradients(loss.values), gradient, rtol=gradients[0], atol=gradients[1])
    return losses


def check_losses_in_any_order(run: Learning, expected: Sequence[tuple[Tensor, Tensor]]) -> list[Loss]:
    """As :func:`check_losses`, where rows may come in any order and in any pieces: how they fit forwards decides that."""
    losses = run.losses()
    joined = torch.cat([loss.values for loss in losses])
    found = (joined.detach().double(), run.gradients(joined))
    wanted = (torch.cat([value for value, _ in expected]), torch.cat([gradient for _, gradient in expected]))
    ours, theirs = (torch.cat([value[:, None], gradient], dim=1) for value, gradient in (found, wanted))
    nearest = torch.cdist(theirs, ours).argmin(1)
    assert nearest.sort().values.tolist() == list(range(len(ours))), "the rows are not each expected one once"
    torch.testing.assert_close(found[0][nearest], wanted[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1][nearest], wanted[1], rtol=1e-4, atol=2e-5)
    return losses


def check_same_updates_whatever_fits_a_forward(
    make: Callable[[int, int], Learning], shapes: Sequence[tuple[int, int]] = ((8, 1), (5, 1), (3, 1), (8, 2), (3, 2))
) -> list[int]:
    """How many forwards an update takes in each of ``shapes``, after all of them learn the same.

    ``make(batch_size, timesteps_per_forward)`` makes the run, which has moved off its start. The losses are the same in some
    order, and so is the gradient of their sum.
    """
    found, forwards = [], []
    for shape in shapes:
        run = make(*shape)
        losses, calls = run.count_forwards()
        values = torch.cat([loss.values for loss in losses])
        found.append((values.detach().sort().values, values.detach().sum(), run.gradient(values)))
        forwards.append(calls.forwards)
    for other, shape in zip(found, shapes, strict=True):
        for one, two, what in zip(found[0], other, ("losses", "sum of losses", "gradient"), strict=True):
            told = f"{what} of {shape}: {two.tolist()}, of {shapes[0]}: {one.tolist()}"
            torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6, msg=told)
    return forwards


def check_forwards(run: Learning, losses: int, each: int) -> list[Loss]:
    """The losses of an update, after there were so many, with ``each`` forwards a loss, of which one has a graph."""
    found, calls = run.count_forwards()
    told = f"{len(found)} losses take {calls.forwards} forwards, {calls.graphs} with a graph"
    assert (len(found), calls.forwards, calls.graphs) == (losses, losses * each, losses), told
    return found


def check_forwards_fit(run: Learning, rows: int) -> None:
    """The losses of an update have ``rows`` in all, and no forward holds more samples and times than fit one."""
    losses, calls = run.count_forwards()
    most = run.experience.batch_size * run.experience.timesteps_per_forward
    assert max(calls.rows) <= most, f"a forward holds {max(calls.rows)} rows, more than the {most} that fit it"
    found = sum(len(loss.values) for loss in losses)
    assert found == rows, f"the losses have {found} rows, not {rows}"


def check_no_advantage_no_gradient(run: Learning) -> None:
    """An optimizer step on advantages of zero has no gradient and leaves the weights as they are."""
    still = run.with_advantages([0.0] * len(run.experience))
    before = still.weights()
    assert still.update(lr=1.0).norm == 0, "advantages of zero have a gradient"
    assert still.weights() == before, "advantages of zero move the weights"


def check_ratios_are_one(run: Learning) -> list[Loss]:
    """The losses of an update, after the ratio of each sample is exactly one, as it is at the weights that drew."""
    losses = run.losses()
    assert losses, "update yielded no loss"
    for loss in losses:
        assert "ratio/mean" in loss.metrics, "ratio/mean is not reported"
        assert torch.equal(loss.metrics["ratio/mean"], torch.ones_like(loss.values)), "a ratio is not one"
        deviations = loss.extremes["ratio/max_deviation"]
        assert torch.equal(deviations, torch.zeros_like(loss.values)), "a ratio deviates from one"
    return losses


def check_clip(run: Learning, ratios: Sequence[Tensor], clip_range: float | tuple[float, float]) -> set[tuple[bool, str]]:
    """(good, side) of the samples, after a clip cut the gradient of just those that are too far where they are pushed to.

    ``ratios`` [b] of each loss are worked out by hand; a good sample's advantage is above zero; a side is "above", "below" or
    "within". No other term than the clipped surrogate may be on. ``clip_range`` may be a pair (below, above).
    """
    sides = set()
    below, above = clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range)
    for loss, expected in zip(run.losses(), ratios, strict=True):
        advantages = run.experience.advantages.tolist()
        for value, ratio, advantage in zip(loss.values, expected.tolist(), advantages, strict=True):
            assert min(abs(ratio - 1 - above), abs(ratio - 1 + below)) > 1e-5, "too near to a bound to tell its sides"
            side = "above" if ratio > 1 + above else "below" if ratio < 1 - below else "within"
            cut = (advantage > 0 and side == "above") or (advantage < 0 and side == "below")
            still = not bool(run.gradient(value).any())
            assert still == cut, f"a ratio of {ratio:.5f} with advantage {advantage} is {'' if still else 'not '}cut"
            sides.add((advantage > 0, side))
    return sides


def check_penalty(run: Learning, name: str, away: Weights) -> list[Loss]:
    """The losses at ``away``, where the term ``name`` pulls back to where ``run`` stands, at which it is exactly zero."""
    start = torch.tensor(run.weights(), dtype=torch.float64)
    for loss in run.losses():
        assert name in loss.terms, f"the loss has no term {name!r}"
        assert not loss.terms[name].any(), f"{name} is not zero where it starts"
        assert not run.gradient(loss.terms[name]).any(), f"{name} has a gradient where it starts"
    run.move_to(*away)
    back = start - torch.tensor(away, dtype=torch.float64)
    losses = run.losses()
    for loss in losses:
        assert bool((loss.terms[name] > 0).all()), f"{name} is not above zero away from where it starts"
        assert float(-run.gradient(loss.terms[name]) @ back) > 0, f"{name} does not pull back"
    return losses


def check_reference_stays(run: Learning, name: str, away: Weights) -> None:
    """The term ``name`` at ``away`` is the same to the bit after two more iterations, which end elsewhere."""
    run.move_to(*away)
    first = [loss.terms[name].detach() for loss in run.losses()]
    for iteration, weights in enumerate([away, (away[0] - 0.1, away[1] + 0.1)]):
        run.move_to(*weights)
        run.losses()
        _assert_close(run.weights(), weights, "other weights than the present ones were left in place")
        run.policy.iteration_finished(iteration)
    run.move_to(*away)
    again = [loss.terms[name].detach() for loss in run.losses()]
    assert all(map(torch.equal, first, again)), f"what {name} is measured from has moved"


def check_average(run: Learning, name: str, decays: Mapping[int, float]) -> None:
    """The weights kept as ``name`` keep, at the end of each of the iterations, as much of themselves as ``decays`` says.

    Within an iteration they stand still, and the present weights stay in place.
    """
    kept = run.weights(name)
    for number, (iteration, decay) in enumerate(decays.items()):
        present = (0.5 - 0.1 * number, -0.35 + 0.15 * number)
        run.move_to(*present)
        run.losses()
        _assert_close(run.weights(name), kept, f"the weights {name!r} moved within iteration {iteration}")
        run.policy.iteration_finished(iteration)
        kept = blend(decay, kept, present)
        _assert_close(run.weights(name), kept, f"the weights {name!r} after iteration {iteration}")
        _assert_close(run.weights(), present, "other weights than the present ones were left in place")


def check_descent_follows_advantages(run: Learning, measures: Sequence[Callable[[Weights], Tensor]]) -> None:
    """A small step down each loss raises what its measure says of a good sample, and lowers it of a bad one.

    ``measures``, one for each loss, say [b] how likely its samples are under given weights, up to any growing function; a
    sample's turn comes alone, with an advantage of one and then of minus one, and zero for the others.
    """
    start, count = run.weights(), len(run.experience)
    for sample in range(count):
        for sign in (1.0, -1.0):
            alone = run.with_advantages([sign * (row == sample) for row in range(count)])
            for loss, measure in zip(alone.losses(), measures, strict=True):
                p, q = (torch.tensor(start, dtype=torch.float64) - 1e-4 * alone.gradient(loss.values)).tolist()
                change = float((measure((p, q)) - measure(start))[sample])
                assert change * sign > 0, f"an advantage of {sign} changes sample {sample} by {change}"


def blend(decay: float, kept: Weights, present: Weights) -> Weights:
    """decay * kept + (1 - decay) * present: what an average of weights moves to."""
    return decay * kept[0] + (1 - decay) * present[0], decay * kept[1] + (1 - decay) * present[1]


def _assert_close(found: Weights, expected: Weights, what: str) -> None:
    close = all(math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12) for one, other in zip(found, expected, strict=True))
    assert close, f"{what}: {found}, not {expected}"
