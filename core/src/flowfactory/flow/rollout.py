"""From noise to clean latents: one step, its Gaussian, and the rollout. Written once for every model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from flowfactory.device_copies import send
from flowfactory.errors import UserError
from flowfactory.flow.noise import noise
from flowfactory.flow.solvers import Solver, euler, make_solver
from flowfactory.flow.windows import join_own, rows_within, within
from flowfactory.types import Agree, Conditions, Evaluation, Index, NoiseKey, SamplingPlan, Step, Velocity, as_they_are, take

LOG_ROOT_TAU = 0.9189385175704956
"""Half the logarithm of 2π, in float32 as densities are: written out, for to ask PyTorch is to import it."""


def expand_sigma(sigma: Tensor, latents: Tensor) -> Tensor:
    """Sigma [B] as [B, 1...] in float32, to go with latents [B, ...]."""
    return sigma.float().reshape(-1, *([1] * (latents.dim() - 1)))


def log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Mean over the elements of a sample of the log-density of Normal(mean, std) at x: [B], float32."""
    error = (x.float() - mean) / std
    density = -0.5 * error.square() - std.log() - LOG_ROOT_TAU
    return density.flatten(1).mean(1)


def forward_by_kind(
    kinds: Sequence[Hashable],
    velocity: Callable[[Index, Hashable], Tensor],
    agree: Agree = as_they_are,
) -> Tensor:
    """[B, ...] in the order of the samples, from ``velocity(rows, kind)`` of those whose ``kinds`` are equal.

    For what cannot share a forward: conditions of different shapes, steps of different transformers. A forward of sharded
    weights is the joint work of all ranks: ``agree`` says which kinds they go through, and a rank without samples of one runs
    its first sample instead, which counts for nothing.
    """
    parts: dict[Hashable, list[int]] = {}
    for row, kind in enumerate(kinds):
        parts.setdefault(kind, []).append(row)
    order = agree(list(parts))
    if len(order) == 1:
        return velocity(range(len(kinds)), order[0])
    found = {kind: velocity(parts.get(kind, [0]), kind) for kind in order}
    rows = [row for kind in order for row in parts.get(kind, ())]
    joint = torch.cat([found[kind] for kind in order if kind in parts])
    joint = joint[send(torch.tensor(rows).argsort(), joint.device)]
    for kind in order:
        if kind not in parts:  # part of the graph, so that all ranks go through it backwards too
            joint = joint + 0 * found[kind].sum()
    return joint


def ask_once(agree: Agree) -> Agree:
    """``agree`` for forwards that all need the same kinds: the answer of the first."""
    answers: list[Sequence[Hashable]] = []

    def answer(kinds: Sequence[Hashable]) -> Sequence[Hashable]:
        answers.extend([] if answers else [agree(kinds)])
        return answers[0]

    return answer


def evaluate(velocity: Tensor, step: Step) -> Evaluation:
    """The velocity in float32, and for a recorded step the Gaussian it implies and its log-density [B].

    ``sample`` and ``log_prob`` both come here, which is why a ratio is one before the first update.
    """
    velocity = velocity.float()
    if step.next_latents is None or step.next_sigma is None:
        return Evaluation(velocity)
    latents = step.latents.float()
    sigma, next_sigma = expand_sigma(step.sigma, latents), expand_sigma(step.next_sigma, latents)
    transition = step.dynamics.transition(velocity, latents, sigma, next_sigma)
    log_prob = step.dynamics.log_density(step.next_latents.float(), transition)
    return Evaluation(velocity, transition.mean, transition.std, log_prob)


def check_sigmas(sigmas: Tensor, steps: int, first: float = 0.0) -> None:
    """UserError: no schedule of ``steps``: it is [steps + 1], falls at each step, from 1 or from ``first`` at least, to 0."""
    listed = sigmas.flatten().tolist()
    if sigmas.shape != (steps + 1,):
        wrong = f"have shape {list(sigmas.shape)} for {steps} steps; return [{steps + 1}], with the 0 at the end"
    elif listed[-1] != 0:
        wrong = f"end at {listed[-1]:.4g}; they must end at 0, clean latents"
    elif not first <= listed[0] <= 1:
        wrong = f"begin at {listed[0]:.4g}; they must begin at 1, noise"
    elif not all(now > then for now, then in pairwise(listed)):
        wrong = f"are {[round(sigma, 4) for sigma in listed]}; each must be below the one before"
    else:
        return
    raise UserError(f"model: its sigmas {wrong}")


def _nothing() -> None:
    """What happens at a branch where nobody says."""


def rollout(
    velocity: Velocity,
    start: Tensor,
    sigmas: Tensor,
    conditions: Conditions,
    plan: SamplingPlan,
    at_branch: Callable[[], None] = _nothing,
) -> tuple[Tensor, tuple[Step, ...]]:
    """Clean latents [B, ...] and the recorded steps, from noise ``start`` [B, ...] along ``sigmas`` [steps + 1].

    Recorded steps are computed as training computes them, the others within ``plan.unrecorded``. What ``plan.keep_graph`` is
    given has a graph, and what is returned then has none.
    Steps in ``plan.stochastic`` follow ``plan.dynamics``, the others the ODE, and are recorded without next latents. Where
    there are ``plan.windows``, a step follows the dynamics for the samples that have it in theirs.
    Latents keep the dtype of ``plan.storage``, else of ``start``, and are rounded to it before their log-density is taken, so
    that replay sees what sampling saw.
    Where ``plan.shares_prefix``, the steps before the first that is stochastic or recorded are taken once for all samples of
    one start. Then ``at_branch`` is called: what a model remembers of the samples of a forward is of others from there on.
    """
    latents, points, branch = start.to(plan.storage or start.dtype), sigmas.tolist(), _branch(plan)
    if branch:
        first, place = _first_of_each(plan.starts)
        latents, _ = _steps(velocity, take(latents, first), points, conditions.rows(first), plan.rows(first), range(branch))
        latents = take(latents, place)
        at_branch()
    return _steps(velocity, latents, points, conditions, plan, range(branch, len(points) - 1))


def _branch(plan: SamplingPlan) -> int:
    """How many steps the samples of one start are one for."""
    return min(plan.stochastic | plan.recorded, default=plan.steps) if plan.shares_prefix and plan.starts else 0


def _first_of_each(starts: Sequence[NoiseKey]) -> tuple[list[int], list[int]]:
    """The first sample of each start, and for each sample the place of its start among them."""
    places = {start: place for place, start in enumerate(dict.fromkeys(starts))}
    return [starts.index(start) for start in places], [places[start] for start in starts]


def _steps(
    velocity: Velocity, latents: Tensor, sigmas: Sequence[float], conditions: Conditions, plan: SamplingPlan, numbers: range
) -> tuple[Tensor, tuple[Step, ...]]:
    """The latents after the steps ``numbers``, and those steps that are recorded."""
    steps: dict[int, Step] = {}
    solver: Solver | None = None
    dtype, given = latents.dtype, conditions.under(plan.guidance)

    def look_ahead(point: Tensor, sigma: float) -> Tensor:
        with plan.unrecorded():
            return _ask(velocity, point.to(dtype), _at(sigma, point), given, plan).float()

    for i in numbers:
        sigma, next_sigma = _at(sigmas[i], latents), _at(sigmas[i + 1], latents)
        with _forward(i, plan):
            graph = _ask(velocity, latents, sigma, given, plan)
        v = graph if plan.keep_graph is None else graph.detach()
        if i in plan.stochastic:
            x, s, s_next = latents.float(), expand_sigma(sigma, latents), expand_sigma(next_sigma, latents)
            mean, std = plan.dynamics.transition(v.float(), x, s, s_next)
            arrived = mean + std * noise(plan, latents.shape[1:], i, latents.device)
            solver = None  # what it remembers is of the path before
            if plan.windows:
                arrived = torch.where(within(plan, i, latents), arrived, euler(v.float(), x, s, s_next))
        else:
            solver = solver or make_solver(plan.dynamics)
            arrived = solver.step(v.float(), latents.float(), sigmas[i], sigmas[i + 1], look_ahead)
        arrived = arrived.to(latents.dtype)
        if i in plan.recorded:
            step = Step(latents, sigma, conditions, plan.guidance, plan.dynamics)
            if i in plan.stochastic:
                step = replace(step, next_sigma=next_sigma, next_latents=arrived)
            drawn = evaluate(v, step) if plan.keep_graph is None else _keep_graph(graph, step, plan.keep_graph)
            step = replace(step, log_prob=drawn.log_prob, mean=drawn.mean if plan.means else None)
            steps[i] = step.rows(rows_within(plan, i)) if plan.records_own else step
        latents = arrived
    return latents, join_own(plan, steps, conditions) if plan.records_own else tuple(steps.values())


def _at(sigma: float, latents: Tensor) -> Tensor:
    """[B]: every sample at ``sigma``."""
    return torch.full((len(latents),), sigma, device=latents.device)


def _ask(velocity: Velocity, latents: Tensor, sigma: Tensor, conditions: Conditions, plan: SamplingPlan) -> Tensor:
    """The velocity [B, ...] of latents [B, ...] at sigma [B]. UserError: it has another shape."""
    found = velocity(latents, sigma, conditions, plan.guidance)
    if found.shape != latents.shape:  # which arithmetic would broadcast
        raise UserError(f"model: its velocity has shape {list(found.shape)} where its latents have {list(latents.shape)}")
    return found


@contextmanager
def _forward(step: int, plan: SamplingPlan) -> Iterator[None]:
    """Within it step number ``step`` of ``plan`` is computed."""
    if step not in plan.recorded:
        with plan.unrecorded():
            yield
    elif plan.keep_graph is None:
        yield
    else:
        torch.clear_autocast_cache()  # weights that were cast for a forward without a graph would have none here
        with torch.enable_grad():
            yield


def _keep_graph(velocity: Tensor, step: Step, keep: Callable[[Step, Evaluation], None]) -> Evaluation:
    """The evaluation of ``step``, without the graph that ``keep`` gets it with."""
    with torch.enable_grad():
        found = evaluate(velocity, step)
    keep(step, found)
    return found.detach()
