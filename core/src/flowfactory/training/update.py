"""The optimizer steps of an iteration, and the losses that each of them learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flowfactory.experience import Loss
from flowfactory.training.metrics import UpdateMetrics
from flowfactory.training.micro_batches import micro_batch_units, split_updates
from flowfactory.training.rollouts import Rollouts
from flowfactory.training.setup import Run


def update(run: Run, rollouts: Rollouts, iteration: int, metrics: UpdateMetrics) -> list[float]:
    """The gradient's norm at each optimizer step, ``updates`` of them an epoch; averages of weights move at the end."""
    training, norms = run.config.training, []
    for epoch in range(training.epochs):
        shares = split_updates(rollouts.experience.groups, training.updates, run.config.seed, iteration, epoch)
        norms += [run.learner.step(losses(run, rollouts, rows, epoch), metrics) for rows in shares]
    run.policy.iteration_finished(iteration)
    return norms


def losses(run: Run, rollouts: Rollouts, rows: Sequence[int], epoch: int) -> Iterator[Loss]:
    """The losses of the samples ``rows``, this rank's part of them, as many on every rank."""
    units, size = micro_batch_units(rows, rollouts.experience, run.config.algorithm)
    for piece, counts in rollouts.micro_batches(units, size, epoch):
        for loss in run.assembly.hooks.update(piece, run.policy):
            yield loss if counts else loss.empty()
