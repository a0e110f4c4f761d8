"""The optimizer steps of an iteration: which samples each learns from, in which micro-batches, and their losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flowfactory.config.component import AlgorithmConfig
from flowfactory.config.schema import RunConfig
from flowfactory.experience import Experience, Loss
from flowfactory.flow.noise import generator
from flowfactory.policy.comparing import Comparison
from flowfactory.rl.groups import group_max, rows_by_group
from flowfactory.training.metrics import UpdateMetrics
from flowfactory.training.phases import begin_phase
from flowfactory.training.regularising import Regularising
from flowfactory.training.rollouts import Rollouts
from flowfactory.training.setup import Run


def update(
    run: Run, rollouts: Rollouts, iteration: int, metrics: UpdateMetrics, regularising: Regularising | None = None
) -> list[float]:
    """The gradient's norm at each optimizer step, ``updates`` of them an epoch; averages of weights move at the end."""
    norms = list[float]()
    steps = [
        (epoch, rows, share)
        for epoch in range(run.config.training.epochs)
        for rows, share in optimizer_steps(rollouts.experience, run.config, iteration, epoch)
    ]
    roles = run.config.algorithm.roles
    passes = 1 + sum(role.steps for role in roles.values())
    learning = begin_phase(run.assembly.hooks, run.ranks, "learning", passes * sum(len(rows) for _, rows, _ in steps))
    joining = iter(_regularising_losses(run, regularising, iteration))
    for epoch, rows, share in steps:
        for name, role in roles.items():
            for turn in range(role.steps):
                own = losses(run, rollouts, rows, epoch, learning.add, name, turn)
                norm = run.learner.roles[name].step(own, metrics.of_role(name), share)
                metrics.of_role(name).add_step({"grad_norm": torch.tensor(norm)})
        beside = next(joining) if regularising else None
        norms.append(run.learner.step(losses(run, rollouts, rows, epoch, learning.add), metrics, share, beside))
        if len(norms) == 1:
            metrics.finish_first_update()
    run.policy.iteration_finished(iteration)
    return norms


def _regularising_losses(run: Run, regularising: Regularising | None, iteration: int) -> Iterator[Iterator[Loss]]:
    """The losses on records that join each optimizer step."""
    if regularising is None:
        return
    training, seed = run.config.training, run.config.seed
    for epoch in range(training.epochs):
        for rows in split_updates(regularising.groups, training.updates, seed, iteration, epoch):
            yield regularising.losses(run, rows, epoch)


def losses(
    run: Run,
    rollouts: Rollouts,
    rows: Sequence[int],
    epoch: int,
    told: Callable[[int], None] = lambda _: None,
    role: str = "",
    turn: int = 0,
) -> Iterator[Loss]:
    """The losses of the samples ``rows``, this rank's part of them, as many on every rank, of the ``turn`` of a ``role``.

    ``told`` hears how many more samples this rank has learned from, each time that the losses of a piece are.
    """
    units, size = micro_batch_units(rows, rollouts.experience, run.config.algorithm)
    hooks, policy = run.assembly.hooks, run.policy

    def comparisons() -> Iterator[Comparison]:
        # without names nothing is asked for, nor exchanged among the ranks
        for piece, _ in rollouts.micro_batches(units, size, epoch) if hooks.names_comparisons else ():
            yield from hooks.comparisons(replace(piece, role=role, turn=turn))

    with policy.comparing(comparisons, rollouts.experience.latents.device), policy.learning_from_drawn_graphs():
        for piece, counts in rollouts.micro_batches(units, size, epoch):
            for loss in hooks.update(replace(piece, role=role, turn=turn), policy):
                yield loss if counts else loss.empty()
            told(len(piece))


def learned_from(experience: Experience) -> Tensor:
    """[B], bool, on the CPU: whether the group of each sample has an advantage other than zero."""
    return group_max(experience.advantages.abs().cpu(), experience.groups) > 0


def optimizer_steps(
    experience: Experience, config: RunConfig, iteration: int, epoch: int
) -> Iterator[tuple[Sequence[int], float]]:
    """The samples of each optimizer step of an epoch that are learned from, and what share of its samples they are.

    Where no group of a step has an advantage, its first is there, so that a step is made all the same.
    """
    there = learned_from(experience)
    # graphs of drawn steps are there for all, and are to be used up
    drops = config.advantages.equal_groups == "drop" and not config.training.keep_graphs
    for rows in split_updates(experience.groups, config.training.updates, config.seed, iteration, epoch):
        kept = [row for row in rows if there[row]] if drops else rows
        kept = kept or rows_by_group(rows, experience.groups)[0]
        yield kept, len(kept) / len(rows)


def split_updates(groups: Tensor, updates: int, seed: int, iteration: int, epoch: int) -> Iterator[list[int]]:
    """The samples of each of ``updates`` optimizer steps, in an order of its own each epoch; ``groups`` [B].

    Groups stay whole where there are enough of them.
    """
    source = generator("shares", seed, iteration, epoch)
    known, index = torch.unique(groups, return_inverse=True)
    if len(known) >= updates:
        parts = torch.randperm(len(known), generator=source).tensor_split(updates)
        step = torch.empty(len(known), dtype=torch.int64)  # that learns from each group
        step[torch.cat(parts)] = torch.arange(updates).repeat_interleave(torch.tensor([len(part) for part in parts]))
        chosen = step[index]
        for rows in torch.split(chosen.argsort(stable=True), torch.bincount(chosen, minlength=updates).tolist()):
            yield rows.tolist()
    else:
        for rows in torch.randperm(len(groups), generator=source).tensor_split(updates):
            yield rows.sort().values.tolist()


def micro_batch_units(rows: Sequence[int], experience: Experience, algorithm: AlgorithmConfig) -> tuple[list[list[int]], int]:
    """What must stay together of ``rows``, whole groups or single samples, and how much of it is a piece for a forward."""
    if not algorithm.groupwise:
        return [[row] for row in rows], experience.batch_size
    units = rows_by_group(rows, experience.groups)
    return units, max(1, experience.batch_size // (algorithm.compared or len(units[0])))
