"""What passes through the hooks, and the one sigma convention.

Sigma runs from 1 (noise) to 0 (clean): ``latents = (1 - sigma) * clean + sigma * noise``, and the velocity is
``d latents / d sigma = noise - clean``. A model that counts time otherwise converts inside.
B is the number of samples; everything with a B axis is in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Index = Sequence[int]


@dataclass(frozen=True)
class Prompt:
    """One prompt. ``index`` is its place in its file and part of the key of its noise."""

    text: str
    index: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Conditions:
    """What the model's ``encode`` made, one mapping per sample; opaque to everyone but the model.

    The samples of a prompt share one mapping. ``negative`` is there when guidance needs it.
    """

    entries: tuple[Mapping[str, Tensor], ...]
    negative: Conditions | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def rows(self, index: Index) -> Conditions:
        """The conditions of the samples ``index``."""
        return Conditions(tuple(self.entries[i] for i in index), self.negative and self.negative.rows(index))

    def stack(self, key: str) -> Tensor:
        """The tensors called ``key`` as one batch [B, ...]."""
        return torch.stack([entry[key] for entry in self.entries])


HELD_OUT = -1


class NoiseKey(NamedTuple):
    """What, beside the plan's seed and iteration, the noise of one sample depends on."""

    prompt: int
    member: int


class Transition(NamedTuple):
    """The Gaussian of the next latents: mean [B, ...], std [B, 1...] (zero where the step is deterministic)."""

    mean: Tensor
    std: Tensor


class Dynamics(Protocol):
    """How latents go from one sigma to the next."""

    @property
    def stochastic(self) -> bool:
        """Whether its steps have a log-density."""

    def window(self, steps: int, generator: torch.Generator) -> frozenset[int]:
        """Which of ``steps`` steps are stochastic this time."""

    def transition(self, velocity: Tensor, latents: Tensor, sigma: Tensor, next_sigma: Tensor) -> Transition:
        """Where latents [B, ...] go; sigmas are [B, 1...]."""

    def log_density(self, next_latents: Tensor, transition: Transition) -> Tensor:
        """[B]: mean over the elements of a sample, so that it does not grow with resolution."""


@dataclass(frozen=True)
class SamplingPlan:
    """All that decides what is drawn, randomness included; no rank and no batch size has a part in it.

    ``iteration`` counts from 0; the fixed noise of held-out prompts has HELD_OUT.
    """

    steps: int
    size: tuple[int, int]
    guidance: float
    dynamics: Dynamics
    seed: int
    iteration: int
    keys: tuple[NoiseKey, ...] = ()
    stochastic: frozenset[int] = frozenset()
    recorded: frozenset[int] = frozenset()

    def rows(self, index: Index) -> SamplingPlan:
        """The plan of the samples ``index``."""
        return replace(self, keys=tuple(self.keys[i] for i in index))


@dataclass(frozen=True)
class Step:
    """One step of B samples: latents [B, ...] at sigma [B].

    With ``next_latents`` it is a recorded transition to next_sigma [B] with its log_prob [B]; without, a place to ask for
    the velocity.
    """

    latents: Tensor
    sigma: Tensor
    conditions: Conditions
    guidance: float
    dynamics: Dynamics
    next_sigma: Tensor | None = None
    next_latents: Tensor | None = None
    log_prob: Tensor | None = None

    def rows(self, index: Index) -> Step:
        """The step of the samples ``index``."""
        return replace(
            self,
            latents=self.latents[index],
            sigma=self.sigma[index],
            conditions=self.conditions.rows(index),
            next_sigma=_rows(self.next_sigma, index),
            next_latents=_rows(self.next_latents, index),
            log_prob=_rows(self.log_prob, index),
        )


@dataclass(frozen=True)
class Evaluation:
    """One forward: velocity [B, ...], and for a recorded step mean [B, ...], std [B, 1...] and log_prob [B]."""

    velocity: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    log_prob: Tensor | None = None


@dataclass(frozen=True)
class Trajectory:
    """What ``sample`` returns: media in [0, 1], [B, C, H, W] or [B, F, C, H, W]; clean latents [B, ...]; recorded steps."""

    media: Tensor
    latents: Tensor
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Samples:
    """What a reward sees. Groups are whole; members of a group stand together.

    media in [0, 1], [B, C, H, W] or [B, F, C, H, W]; prompts, B texts; groups [B], int64; metadata, B mappings.
    """

    media: Tensor
    prompts: tuple[str, ...]
    groups: Tensor
    metadata: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Experience:
    """What an algorithm learns from: latents [B, ...], recorded steps, rewards {label: [B]}, advantages [B], groups [B]."""

    latents: Tensor
    steps: tuple[Step, ...]
    conditions: Conditions
    plan: SamplingPlan
    rewards: Mapping[str, Tensor]
    advantages: Tensor
    groups: Tensor
    batch_size: int

    def __len__(self) -> int:
        return len(self.advantages)

    def rows(self, index: Index) -> Experience:
        """The experience of the samples ``index``."""
        return replace(
            self,
            latents=self.latents[index],
            steps=tuple(step.rows(index) for step in self.steps),
            conditions=self.conditions.rows(index),
            plan=self.plan.rows(index),
            rewards={label: reward[index] for label, reward in self.rewards.items()},
            advantages=self.advantages[index],
            groups=self.groups[index],
        )

    def batches(self) -> Iterator[Experience]:
        """Pieces of at most ``batch_size`` samples, in order: what fits one forward."""
        for start in range(0, len(self), self.batch_size):
            yield self.rows(range(start, min(start + self.batch_size, len(self))))


@dataclass(frozen=True)
class Loss:
    """Losses of b samples, ``values`` [b], differentiable; core takes the mean over all that an update yields.

    ``metrics`` [b] are averaged, ``extremes`` [b] reduced by their maximum. ``terms`` [b] name differentiable parts of
    ``values``, such as ``kl``: preflight proves that each has a gradient, and they are averaged as metrics.
    """

    values: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    extremes: Mapping[str, Tensor] = field(default_factory=dict)
    terms: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Runtime:
    """Where a model is to run, and the dtype its frozen weights are stored in."""

    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Trainable:
    """What ``load`` returns.

    modules: the transformers that train, by their name in the diffusers pipeline, in host memory.
    training: ``"full"``, or the LoRA options; core applies them.
    lora_targets: endings of the names of the linear layers that adapters go on by default.
    blocks: names of the repeated module classes, what sharding and checkpointing wrap.
    encoding: everything beside a prompt that changes what ``encode`` makes of it; the key of the cache.
    guided: whether guidance above 1 needs a negative prompt.
    """

    modules: Mapping[str, nn.Module]
    training: Any
    lora_targets: tuple[str, ...]
    blocks: tuple[str, ...]
    encoding: str
    guided: bool


@dataclass(frozen=True)
class RunInfo:
    """A run as its observers see it: its directory, its resolved config, and how many iterations it will have."""

    directory: Path
    config: Any
    iterations: int


Velocity = Callable[[Tensor, Tensor, Conditions, float], Tensor]
"""``velocity(latents [B, ...], sigma [B], conditions, guidance) -> [B, ...]``."""


def _rows(tensor: Tensor | None, index: Index) -> Tensor | None:
    return None if tensor is None else tensor[index]
