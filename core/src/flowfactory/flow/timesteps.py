"""Training timesteps: where algorithms that bring their own times ask for the velocity, and the noisy latents there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from flowfactory.config.component import AlgorithmConfig
from flowfactory.config.strict import Strict, expand_name
from flowfactory.device_copies import send
from flowfactory.errors import RunError
from flowfactory.experience import Experience
from flowfactory.flow.noise import generator
from flowfactory.flow.rollout import expand_sigma
from flowfactory.types import Index, NoiseKey, Step

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig


class _TimestepRange(Strict):
    """Between which sigmas, and how many times a sample."""

    count: int = Field(2, ge=1, le=1000, description="times a sample and pass")
    low: float = Field(0.0, ge=0, lt=1, description="no sigma below; a shift comes after")
    high: float = Field(1.0, gt=0, le=1, description="no sigma above; a shift comes after")
    shared: bool | None = Field(
        None, description="whether the members of a group share noise and times; the algorithm's own choice when left out"
    )

    @model_validator(mode="after")
    def _check_order(self) -> _TimestepRange:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    def check(self, run: RunConfig) -> None:
        """Raise ValueError when the rest of the config does not go with these times."""


class Discrete(_TimestepRange):
    """Sigmas of the sampling schedule itself, drawn for each sample without replacement."""

    name: Literal["discrete"] = "discrete"
    initial: bool = Field(True, description="whether the first one, pure noise, is among them")

    def check(self, run: RunConfig) -> None:
        """There are as many steps as times."""
        there = run.sampling.steps - (not self.initial)
        if self.count > there:
            raise ValueError(
                f"algorithm.timesteps.count ({self.count}) is more than the {there} sampling steps there are; lower it, raise "
                f"sampling.steps, or choose times in between: algorithm.timesteps={{name: uniform, count: {self.count}}}"
            )

    def sigmas(self, schedule: Tensor, generator: torch.Generator) -> Tensor:
        """[count] of ``schedule`` [steps + 1], each once. RunError: too few lie between low and high."""
        steps = schedule[:-1] if self.initial else schedule[1:-1]
        inside = steps[(steps >= self.low) & (steps <= self.high)]
        if len(inside) < self.count:
            raise RunError(
                f"algorithm.timesteps: {len(inside)} sampling steps lie between low {self.low} and high {self.high}, "
                f"fewer than count {self.count}"
            )
        return inside[torch.randperm(len(inside), generator=generator)[: self.count]]


class _Continuous(_TimestepRange):
    shift: Annotated[float, Field(gt=0, le=100)] | Literal["model"] = Field(
        1.0,
        description="above 1 moves towards noise: sigma becomes s sigma / (1 + (s - 1) sigma); model: as far as the schedule "
        "of sampling does",
    )
    stratified: bool = Field(True, description="one time from each of count equal parts, instead of count at random")

    def _shares(self, generator: torch.Generator) -> Tensor:
        """[count] in [0, 1)."""
        drawn = torch.rand(self.count, generator=generator, dtype=torch.float64)
        return (torch.arange(self.count) + drawn) / self.count if self.stratified else drawn

    def _shifted(self, sigmas: Tensor, schedule: Tensor) -> Tensor:
        return shift_sigma(sigmas, schedule_shift(schedule) if self.shift == "model" else self.shift)


class Uniform(_Continuous):
    """Uniform between low and high."""

    name: Literal["uniform"] = "uniform"

    def sigmas(self, schedule: Tensor, generator: torch.Generator) -> Tensor:
        """[count]."""
        return self._shifted(self.low + (self.high - self.low) * self._shares(generator), schedule)


class LogitNormal(_Continuous):
    """The logistic function of a normal, arXiv:2403.03206, between low and high."""

    name: Literal["logit-normal"] = "logit-normal"
    mean: float = Field(0.0, ge=-100, le=100, description="of the normal; above 0 moves towards noise")
    std: float = Field(1.0, gt=0, le=100, description="of the normal")

    def sigmas(self, schedule: Tensor, generator: torch.Generator) -> Tensor:
        """[count]: quantiles, so that low and high truncate and stratification is exact."""
        low, high = (self._below(bound) for bound in (self.low, self.high))
        shares = (low + (high - low) * self._shares(generator)).clamp(1e-9, 1 - 1e-9)
        sigmas = torch.sigmoid(self.mean + self.std * torch.special.ndtri(shares))
        return self._shifted(sigmas.clamp(self.low, self.high), schedule)  # far in a tail the quantiles are not exact

    def _below(self, sigma: float) -> float:
        if sigma in (0.0, 1.0):
            return sigma
        return NormalDist(self.mean, self.std).cdf(float(torch.logit(torch.tensor(sigma, dtype=torch.float64))))


Timesteps = Annotated[Discrete | Uniform | LogitNormal, Field(discriminator="name"), BeforeValidator(expand_name)]
"""The option ``timesteps``: ``{name: uniform, count: 4}``, or the name alone."""


class TimestepsConfig(AlgorithmConfig):
    """What the options of algorithms with training timesteps of their own share."""

    conditional: ClassVar[bool] = True

    timesteps: Timesteps = Field(Uniform(), description="training timesteps")

    def check(self, run: RunConfig) -> None:
        """The training timesteps go with the sampling steps."""
        self.timesteps.check(run)

    def remarks(self, run: RunConfig) -> Iterator[str]:
        """More times in a forward than there are."""
        if (together := run.training.timesteps_per_forward) > self.timesteps.count:
            yield (
                f"training.timesteps_per_forward {together}: a picture has {self.timesteps.count} training timesteps "
                "(algorithm.timesteps.count); set it lower"
            )


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Sigma moved towards noise by a shift above 1, as schedulers shift: s sigma / (1 + (s - 1) sigma)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def schedule_shift(sigmas: Tensor) -> float:
    """How far a ``schedule`` [steps + 1] of evenly spaced sigmas was shifted, by :func:`shift_sigma`; 1 for a single step.

    Exact whatever the last step begins at; of a schedule of another shape it is about that of its noisier half.
    """
    steps = len(sigmas) - 1
    odds = (sigmas / (1 - sigmas)).double()  # s u / (1 - u) of an even u
    if steps < 2:
        return 1.0
    if steps == 2:
        return float(odds[1])
    place = max(1, steps // 3)
    shift = float(odds[place] - 2 * odds[2 * place])
    return shift if 0 < shift < math.inf else 1.0


@dataclass(frozen=True)
class NoisedBatch:
    """Noisy latents to ask for the velocity at, in ``step``, a row for each sample and time.

    ``samples`` [b] are the rows' own; target [b, ...] is noise - clean; time [b] counts the times of a sample from 0.
    """

    samples: Experience
    step: Step
    target: Tensor
    time: Tensor

    def __len__(self) -> int:
        return len(self.time)

    @property
    def groups(self) -> Tensor:
        """[b], int64: rows of one group at one time share an id."""
        return self.samples.groups * (int(self.time.max()) + 1) + self.time

    def rows(self, index: Index) -> NoisedBatch:
        """The rows ``index``."""
        return NoisedBatch(self.samples.rows(index), self.step.rows(index), self.target[index], self.time[index])

    def micro_batches(self) -> list[NoisedBatch]:
        """Pieces that fit one forward, in order."""
        most = self.samples.batch_size * self.samples.timesteps_per_forward
        return [self.rows(range(start, min(start + most, len(self)))) for start in range(0, len(self), most)]


def noised_batches(
    experience: Experience, timesteps: Discrete | Uniform | LogitNormal, shared: bool = False
) -> Iterator[NoisedBatch]:
    """All samples of ``experience`` at their training timesteps, ``timesteps_per_forward`` times together.

    Times and noise are functions of (seed, iteration, epoch, prompt, member) alone. With ``shared``, unless ``timesteps`` says
    otherwise, the members of a group have the same ones.
    """
    experience = experience.to_device()
    plan, device = experience.plan, experience.latents.device
    guidance = plan.guidance if plan.training_guidance is None else plan.training_guidance
    keys = plan.keys
    if shared if timesteps.shared is None else timesteps.shared:  # a prompt that comes twice has groups of its own
        first = {int(group): key for group, key in reversed(list(zip(experience.groups, keys, strict=True)))}
        keys = tuple(NoiseKey(first[int(group)].prompt, -1 - int(group)) for group in experience.groups)
    schedule = experience.sigmas.float().cpu()
    times = training_generators(experience, keys, "times")
    sigmas = torch.stack([timesteps.sigmas(schedule, source).float() for source in times])
    sigmas = send(sigmas, device)
    shape = experience.latents.shape[1:]
    for start in range(0, timesteps.count, experience.timesteps_per_forward):
        chosen = range(start, min(start + experience.timesteps_per_forward, timesteps.count))
        samples = experience.rows([*range(len(experience))] * len(chosen))
        sigma = torch.cat([sigmas[:, j] for j in chosen])
        sources = [source for j in chosen for source in training_generators(experience, keys, f"noise {j}")]
        noise = send(torch.stack([torch.randn(shape, generator=source) for source in sources]), device)
        clean, s = samples.latents.float(), expand_sigma(sigma, samples.latents)
        latents = ((1 - s) * clean + s * noise).to(experience.latents.dtype)
        step = Step(latents, sigma, samples.conditions, guidance, plan.dynamics)
        yield NoisedBatch(samples, step, noise - clean, torch.tensor(chosen).repeat_interleave(len(experience)))


def noised_micro_batches(
    experience: Experience, timesteps: Discrete | Uniform | LogitNormal, shared: bool = False
) -> Iterator[NoisedBatch]:
    """:func:`noised_batches` of each piece of ``experience`` that fits one forward."""
    for batch in experience.micro_batches():
        yield from noised_batches(batch, timesteps, shared)


def training_generators(experience: Experience, keys: Sequence[NoiseKey], purpose: str) -> list[torch.Generator]:
    """What is drawn from for a ``purpose`` while learning, a generator for each of ``keys``.

    A function of (seed, iteration, epoch, prompt, member), and of the role and its turn where a role learns.
    """
    plan = experience.plan
    beside = (experience.role, experience.turn) if experience.role else ()
    key = ("training", purpose, plan.seed, plan.iteration, experience.epoch)
    return [generator(*key, *beside, each.prompt, each.member) for each in keys]
