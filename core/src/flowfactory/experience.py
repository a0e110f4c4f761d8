"""What an algorithm learns from, and what it answers: experience and losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flowfactory.errors import RunError
from flowfactory.types import Conditions, Index, SamplingPlan, Step, take


@dataclass(frozen=True)
class Experience:
    """What an algorithm learns from.

    latents [B, ...], recorded steps, rewards {label: [B]} in the dtype of their scores, advantages [B] in float32, groups [B];
    sigmas [steps + 1] of the schedule that drew them. ``batch_size`` samples, each at ``timesteps_per_forward`` steps or
    training timesteps, fit one forward. ``epoch`` counts the passes over the iteration's samples from 0, and is part of the key
    of what is drawn to train. Samples may rest in host memory; the pieces that fit a forward come on ``device``, where that is
    given. ``kl_coefficient`` is what an adaptive KL weighs in this iteration; its start where None. ``kl_gate`` [B], bool:
    the samples that a gated KL is for, all where None; it rests with the advantages. ``role``: whose weights are to learn from
    it, the policy's where it is empty, and ``turn``: the how manieth of its optimizer steps on these samples, from 0.
    ``sources``: of each sample the name of its prompt's source, "" where it has none; empty where nobody told.
    """

    latents: Tensor
    steps: tuple[Step, ...]
    conditions: Conditions
    plan: SamplingPlan
    rewards: Mapping[str, Tensor]
    advantages: Tensor
    groups: Tensor
    sigmas: Tensor
    batch_size: int
    timesteps_per_forward: int = 1
    epoch: int = 0
    device: torch.device | None = None
    kl_coefficient: float | None = None
    kl_gate: Tensor | None = None
    role: str = ""
    turn: int = 0
    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.advantages)

    def to_device(self) -> Experience:
        """The experience on ``device``; as it is where it rests there already, or where none is given."""
        if self.device is None or self.latents.device == self.device:
            return self
        steps = tuple(step.to(self.device) for step in self.steps)
        latents, advantages = self.latents.to(self.device), self.advantages.to(self.device)
        gate = None if self.kl_gate is None else self.kl_gate.to(self.device)
        return replace(self, latents=latents, advantages=advantages, kl_gate=gate, steps=steps)

    def rows(self, index: Index) -> Experience:
        """The experience of the samples ``index``, which may repeat."""
        return replace(
            self._alone(index),
            steps=tuple(step.rows(index) for step in self.steps),
        )

    def _alone(self, index: Index) -> Experience:
        return replace(
            self,
            latents=take(self.latents, index),
            steps=(),
            conditions=self.conditions.rows(index),
            plan=self.plan.rows(index),
            rewards={label: take(reward, index) for label, reward in self.rewards.items()},
            advantages=take(self.advantages, index),
            kl_gate=None if self.kl_gate is None else take(self.kl_gate, index),
            groups=take(self.groups, index),
            sources=tuple(self.sources[i] for i in index) if self.sources else (),
        )

    def micro_batches(self) -> Iterator[Experience]:
        """Pieces of at most ``batch_size`` samples, in order: what fits one forward."""
        for start in range(0, len(self), self.batch_size):
            yield self.rows(range(start, min(start + self.batch_size, len(self)))).to_device()

    def group_batches(self) -> Iterator[Experience]:
        """Pieces that hold whole groups: as many as ``batch_size`` samples allow, and one where a group alone is larger."""
        rows: list[int] = []
        sizes = torch.unique(self.groups, return_counts=True)[1].tolist()
        for part in torch.split(self.groups.argsort(stable=True), sizes):
            members = part.tolist()
            if rows and len(rows) + len(members) > self.batch_size:
                yield self.rows(rows).to_device()
                rows = []
            rows += members
        yield self.rows(rows).to_device()

    def replay(self) -> Iterator[tuple[Experience, Step]]:
        """The recorded steps, ``timesteps_per_forward`` of them joined, with the samples of each row."""
        for batch in self.micro_batches():
            for start in range(0, len(batch.steps), self.timesteps_per_forward):
                steps = batch.steps[start : start + self.timesteps_per_forward]
                samples = batch._alone([*range(len(batch))] * len(steps))
                yield samples, Step.concatenate(steps, samples.conditions)


@dataclass(frozen=True)
class Loss:
    """Losses of b samples, ``values`` [b], differentiable; core takes the mean over all that an update yields.

    ``metrics`` [b] are averaged, ``extremes`` [b] reduced by their maximum. ``terms`` [b] name differentiable parts of
    ``values``, such as ``kl``: preflight proves that each has a gradient, and they are averaged as metrics. ``cuts`` [b] are 1
    where the gradient of a sample is cut off and 0 elsewhere, such as ``clip_fraction``: averaged as metrics, and those of an
    iteration's first update once more on their own. ``ratios`` [b] weigh the samples: how much likelier each is
    now than when it was drawn. From those of an iteration comes ``effective_sample_size``.
    """

    values: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    extremes: Mapping[str, Tensor] = field(default_factory=dict)
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    cuts: Mapping[str, Tensor] = field(default_factory=dict)
    ratios: Tensor | None = None

    def empty(self) -> Loss:
        """The loss of no sample, with the same graph: what it is back-propagated for is that other ranks do so too."""
        return Loss(self.values[:0], terms={name: term[:0] for name, term in self.terms.items()})

    def add_term(self, name: str, weight: float | Tensor, term: Tensor, gate: Tensor | None = None) -> Loss:
        """Another loss, to be yielded in place of this one: ``weight`` times ``term`` [b] is added to its values.

        So it is where ``gate`` [b] is True, and everywhere without one. The whole term is under ``name`` among its terms.
        RunError: the term has another shape than the values.
        """
        weighted = weight * term
        if gate is not None:  # a product would keep the gradient of a term that is not finite
            weighted = torch.where(gate, weighted, torch.zeros_like(weighted))
        if not self.values.shape == term.shape == weighted.shape:
            wrong = term if term.shape != self.values.shape else weighted
            raise RunError(
                f"the term {name!r} has shape {list(wrong.shape)} and the loss's values {list(self.values.shape)}; "
                "give both one value a sample, [b]"
            )
        return replace(self, values=self.values + weighted, terms={**self.terms, name: term})
