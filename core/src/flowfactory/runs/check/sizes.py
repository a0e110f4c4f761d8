"""How much a run draws and learns: counts that follow from its config and its prompts alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowfactory.training.regularising_prompts import regularising_count
from flowfactory.types import Prompt

if TYPE_CHECKING:
    from flowfactory.config.component import DynamicsConfig
    from flowfactory.config.schema import RunConfig


@dataclass(frozen=True)
class Sizes:
    """Counts of a run, of all ranks together.

    A forward is one evaluation of the transformer for one picture or video; two of them make a guided one. ``learned`` are
    those with a gradient, one iteration's: references and the like are beside them. None where the algorithm does not say.
    ``learns_from``: what a group is of, samples that are drawn or records. ``beside`` are records that join an iteration.
    """

    train: int
    heldout: int
    groups: int
    group_size: int
    drawn: int
    learned: int | None
    evaluated: int
    evaluations: int
    iterations: int
    steps: int
    learns_from: str = "samples"
    beside: int = 0

    @property
    def samples(self) -> int:
        """That an iteration learns from."""
        return self.groups * self.group_size


def count_sizes(config: RunConfig, train: Sequence[Prompt], heldout: Sequence[Prompt]) -> Sizes:
    """The sizes of a run with these prompts."""
    sampling, training, evaluation = config.sampling, config.training, config.evaluation
    samples = sampling.groups * sampling.group_size if config.algorithm.learns_from == "samples" else 0
    steps = evaluation.steps or sampling.steps
    guidance = sampling.guidance if evaluation.guidance is None else evaluation.guidance
    pictures = len(heldout) * evaluation.members
    solver = evaluation.dynamics
    return Sizes(
        train=len(train),
        heldout=len(heldout),
        groups=sampling.groups,
        group_size=config.group_members,
        drawn=samples * _forwards(sampling.dynamics, sampling.steps) * _branches(config, sampling.guidance),
        learned=_learned(config),
        evaluated=pictures * (_forwards(solver, steps) if solver else steps) * _branches(config, guidance),
        evaluations=_evaluations(config) if heldout else 0,
        iterations=training.iterations,
        steps=training.updates * training.epochs,
        learns_from=config.algorithm.learns_from,
        beside=regularising_count(config),
    )


def _forwards(dynamics: DynamicsConfig, steps: int) -> int:
    """Of one picture: the last step has one."""
    return dynamics.evaluations * (steps - 1) + 1


def _branches(config: RunConfig, guidance: float) -> int:
    """How many forwards make a velocity under ``guidance``, as far as files on this machine tell."""
    return 2 if guidance > 1 and config.model.takes_negatives() else 1


def _learned(config: RunConfig) -> int | None:
    """Forwards with a gradient in one iteration."""
    sampling, algorithm = config.sampling, config.algorithm
    own = 1.0 if algorithm.conditional else sampling.guidance
    branches = _branches(config, own if algorithm.guidance is None else algorithm.guidance)
    pictures = sampling.groups * (algorithm.compared or config.group_members)
    times = getattr(getattr(algorithm, "timesteps", None), "count", None)
    if times is None and algorithm.trust_region:
        times = sampling.dynamics.stochastic_steps(sampling.steps)
    return None if times is None else (pictures * times * branches + regularising_count(config)) * config.training.epochs


def _evaluations(config: RunConfig) -> int:
    """Before training, every so many iterations, and at the end."""
    iterations, every = config.training.iterations, config.evaluation.every
    between = (iterations - 1) // every if every else 0
    return config.evaluation.at_start + between + 1
