"""What passes through the hooks, and the one sigma convention.

Sigma runs from 1 (noise) to 0 (clean): ``latents = (1 - sigma) * clean + sigma * noise``, and the velocity is
``d latents / d sigma = noise - clean``. A model that counts time otherwise converts inside.
B is the number of samples; everything with a B axis is in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from flowfactory.canvas import Canvas
from flowfactory.device_copies import send

Index = Sequence[int]
"""Places of samples, from 0, in any order; what takes one may be given a ``range``, and gives a view of neighbours."""
Say = Callable[[str], None]
"""Prints one line."""
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
"""What a config calls them."""


def take(tensor: Tensor, index: Index) -> Tensor:
    """The samples ``index`` of ``tensor`` [B, ...]; a view of them where they stand together."""
    if isinstance(index, range) and index.step == 1:
        return tensor[index.start : index.stop]
    return tensor[send(torch.tensor(list(index), dtype=torch.int64), tensor.device)]


@dataclass(frozen=True)
class Prompt:
    """One prompt. ``index`` is its place in its file and part of the key of its noise.

    ``negative`` is its own negative prompt, None for the config's; images, video and audio are files; metadata is what else
    its file says of it. ``is_negative``: it is itself what guidance leads away from, for an ``encode`` that treats both apart.
    ``video_fps``: whether its video is read at the model's frame rate, or frame by frame. ``target``, ``chosen`` and
    ``rejected`` are pictures or videos that were made for it; nothing that is drawn depends on them. ``source`` is the name of
    its file, where the config gives files names, and ``index`` its place in all of them.
    """

    text: str
    index: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    negative: str | None = None
    images: tuple[Path, ...] = ()
    video: Path | None = None
    audio: Path | None = None
    is_negative: bool = False
    video_fps: Literal["model", "keep"] = "model"
    target: Path | None = None
    chosen: Path | None = None
    rejected: Path | None = None
    source: str = ""

    @property
    def media(self) -> tuple[Path, ...]:
        """The files that it is drawn from."""
        return (*self.images, *(path for path in (self.video, self.audio) if path is not None))

    @property
    def records(self) -> tuple[Path, ...]:
        """The files that were made for it."""
        return tuple(path for path in (self.target, self.chosen, self.rejected) if path is not None)


Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""The names of what the model made of a prompt, in order, and the shape of each."""


def shapes_of(entry: Mapping[str, Tensor]) -> Shapes:
    """The shapes of what the model made of one prompt."""
    return tuple((name, tuple(entry[name].shape)) for name in sorted(entry))


@dataclass(frozen=True)
class Conditions:
    """What the model's ``encode`` made, one mapping per sample; opaque to everyone but the model.

    The samples of a prompt share one mapping. ``negative`` is there when guidance needs it. ``shapes``: what there is among
    all ranks' conditions and negative ones of the plan that these are part of; empty where nobody told. ``detached``: whether
    forwards under these have no gradient, see :func:`flowfactory.flow.negative_branch`.
    """

    entries: tuple[Mapping[str, Tensor], ...]
    negative: Conditions | None = None
    shapes: frozenset[Shapes] = frozenset()
    detached: bool = False

    def __len__(self) -> int:
        return len(self.entries)

    def rows(self, index: Index) -> Conditions:
        """The conditions of the samples ``index``."""
        negative = self.negative and self.negative.rows(index)
        return replace(self, entries=tuple(self.entries[i] for i in index), negative=negative)

    def under(self, guidance: float) -> Conditions:
        """What a forward under ``guidance`` is given: these, with negative ones above 1 alone."""
        return replace(self, negative=None) if guidance <= 1 and self.negative is not None else self

    def own_shapes(self) -> frozenset[Shapes]:
        """What there is among these and the negative ones."""
        mine = {id(entry): entry for entry in self.entries}.values()
        found = frozenset(map(shapes_of, mine))
        return found | self.negative.own_shapes() if self.negative else found

    def stack(self, key: str) -> Tensor:
        """The tensors called ``key`` as one batch [B, ...]."""
        return torch.stack([entry[key] for entry in self.entries])

    def pad(self, key: str, multiple: int = 1) -> tuple[Tensor, Tensor]:
        """The tensors called ``key`` [L_i, ...] as one batch [B, L, ...] with zeros behind, and what of it is theirs [B, L].

        L is the length of the longest, and of more where that is no ``multiple``.
        """
        tensors = [entry[key] for entry in self.entries]
        lengths = send(torch.tensor([len(tensor) for tensor in tensors]), tensors[0].device)
        batch = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        if missing := -batch.shape[1] % multiple:
            batch = torch.cat([batch, batch.new_zeros(len(batch), missing, *batch.shape[2:])], dim=1)
        return batch, torch.arange(batch.shape[1], device=batch.device) < lengths[:, None]


HELD_OUT = -1


class NoiseKey(NamedTuple):
    """What, beside the plan's seed and iteration, the noise of one sample depends on.

    ``prompt``: the ``index`` of its prompt; ``member``: its place among the samples of that prompt, from 0.
    """

    prompt: int
    member: int


class Transition(NamedTuple):
    """The Gaussian of the next latents: mean [B, ...], std [B, 1...] (zero where the step is deterministic)."""

    mean: Tensor
    std: Tensor


class Dynamics(Protocol):
    """How latents go from one sigma to the next: without noise by Euler, or by what its ``make_solver()``, if any, returns."""

    @property
    def stochastic(self) -> bool:
        """Whether its steps have a log-density."""

    def window(self, steps: int, iteration: int, generator: torch.Generator) -> frozenset[int]:
        """Which of ``steps`` steps are stochastic in ``iteration``, counted from 0."""

    def transition(self, velocity: Tensor, latents: Tensor, sigma: Tensor, next_sigma: Tensor) -> Transition:
        """Where latents [B, ...] go; sigmas are [B, 1...]."""

    def log_density(self, next_latents: Tensor, transition: Transition) -> Tensor:
        """[B]: mean over the elements of a sample, so that it does not grow with resolution."""


@dataclass(frozen=True)
class SamplingPlan:
    """All that decides what is drawn, randomness included; no rank and no batch size has a part in it.

    ``iteration`` counts from 0; the fixed noise of held-out prompts has HELD_OUT. ``means``: recorded steps carry the mean
    they were drawn from. ``weights``: the name of the kept weights that draw, None for the present ones.
    ``unrecorded``: the context of forwards of steps that are not recorded, whose rounding nothing is compared with.
    ``cache_threshold``: that of :mod:`flowfactory.models.feature_cache`, ``weights_as``: how the weights that draw are stored;
    None for neither, and the weights as they are. ``keep_graph``: where given, recorded steps are drawn with a graph, and each
    goes there with its evaluation.
    ``teacher_guidance``: the largest guidance that an algorithm will ask of weights beside those that draw, so that the
    conditions bring what it needs. ``training_guidance``: that of the velocity at training timesteps, None for the one that
    draws. ``storage``: the dtype that latents have between steps, None for that of the noise.
    ``starts``: the keys of the noise that samples start from, where these are others than ``keys``: members of a group may
    share one. ``shares_prefix``: whether samples of one start are one until the first step that is stochastic or recorded.
    ``windows``: the stochastic steps of the samples of each prompt, by its index and as many for each, of which ``stochastic``
    has all; empty where they are the same for all.
    """

    steps: int
    canvas: Canvas
    guidance: float
    dynamics: Dynamics
    seed: int
    iteration: int
    keys: tuple[NoiseKey, ...] = ()
    stochastic: frozenset[int] = frozenset()
    recorded: frozenset[int] = frozenset()
    windows: Mapping[int, frozenset[int]] = field(default_factory=dict)
    means: bool = False
    weights: str | None = None
    teacher_guidance: float = 1.0
    training_guidance: float | None = None
    storage: torch.dtype | None = None
    unrecorded: Callable[[], AbstractContextManager[object]] = nullcontext
    cache_threshold: float | None = None
    weights_as: str | None = None
    keep_graph: Callable[[Step, Evaluation], None] | None = None
    starts: tuple[NoiseKey, ...] = ()
    shares_prefix: bool = False

    @property
    def records_own(self) -> bool:
        """Whether of each sample the steps of its own window are recorded, and not the same ones of all."""
        return bool(self.windows) and self.recorded == self.stochastic

    def rows(self, index: Index) -> SamplingPlan:
        """The plan of the samples ``index``."""
        starts = tuple(self.starts[i] for i in index) if self.starts else ()
        return replace(self, keys=tuple(self.keys[i] for i in index), starts=starts)


@dataclass(frozen=True)
class Step:
    """One step of B samples: latents [B, ...] at sigma [B].

    With ``next_latents`` it is a recorded transition to next_sigma [B] with its log_prob [B], and its mean [B, ...] where
    the plan asks for means; without, a place to ask for the velocity.
    """

    latents: Tensor
    sigma: Tensor
    conditions: Conditions
    guidance: float
    dynamics: Dynamics
    next_sigma: Tensor | None = None
    next_latents: Tensor | None = None
    log_prob: Tensor | None = None
    mean: Tensor | None = None

    def rows(self, index: Index) -> Step:
        """The step of the samples ``index``."""
        return self.map(lambda tensor: take(tensor, index), self.conditions.rows(index))

    def to(self, device: torch.device) -> Step:
        """The step with its tensors on ``device``; conditions stay where they are."""
        return self.map(lambda tensor: tensor.to(device), self.conditions)

    def map(self, change: Callable[[Tensor], Tensor], conditions: Conditions) -> Step:
        """The step with each of its tensors changed, and ``conditions`` to go with them."""
        tensors = {name: None if value is None else change(value) for name, value in self._tensors()}
        return replace(self, conditions=conditions, **tensors)  # type: ignore[arg-type]

    @staticmethod
    def concatenate(steps: Sequence[Step], conditions: Conditions) -> Step:
        """``steps`` as one batch, in order; ``conditions`` are those of all. Guidance and dynamics are the first's."""
        if len(steps) == 1:
            return replace(steps[0], conditions=conditions)
        if len({tuple(value is None for _, value in step._tensors()) for step in steps}) > 1:
            raise ValueError("steps with and without next latents cannot share a forward; record the stochastic ones alone")
        columns = zip(*(step._tensors() for step in steps), strict=True)
        tensors = {
            same[0][0]: None if same[0][1] is None else torch.cat([value for _, value in same if value is not None])
            for same in columns
        }
        return replace(steps[0], conditions=conditions, **tensors)  # type: ignore[arg-type]

    def _tensors(self) -> tuple[tuple[str, Tensor | None], ...]:
        names = ("latents", "sigma", "next_sigma", "next_latents", "log_prob", "mean")
        return tuple((name, getattr(self, name)) for name in names)


@dataclass(frozen=True)
class Evaluation:
    """One forward: velocity [B, ...], and for a recorded step mean [B, ...], std [B, 1...] and log_prob [B]."""

    velocity: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    log_prob: Tensor | None = None

    def detach(self) -> Evaluation:
        """The same numbers without their graph."""
        return Evaluation(*(None if t is None else t.detach() for t in (self.velocity, self.mean, self.std, self.log_prob)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Trajectory:
    """What ``sample`` returns.

    media in [0, 1], [B, C, H, W] or [B, F, C, H, W], as the decoder made them: core clamps what is slightly beyond; clean
    latents [B, ...]; the schedule, sigmas [steps + 1]; the recorded steps. ``overshoot`` [B] is core's: how far
    media were outside.
    """

    media: Tensor
    latents: Tensor
    sigmas: Tensor
    steps: tuple[Step, ...] = ()
    overshoot: Tensor | None = None

    def to(self, device: torch.device) -> Trajectory:
        """The trajectory with media, latents and steps on ``device``."""
        steps = tuple(step.to(device) for step in self.steps)
        overshoot = None if self.overshoot is None else self.overshoot.to(device)
        return replace(self, media=self.media.to(device), latents=self.latents.to(device), steps=steps, overshoot=overshoot)


@dataclass(frozen=True)
class Samples:
    """What a reward sees. Members of a group stand together, and groups are whole but for a reward that is pointwise.

    media in [0, 1], [B, C, H, W] or [B, F, C, H, W]; prompts, B texts; groups [B], int64; metadata, B mappings; sources,
    the B prompts with the pictures and videos they bring; frame_rate, frames a second where media move.
    """

    media: Tensor
    prompts: tuple[str, ...]
    groups: Tensor
    metadata: tuple[Mapping[str, Any], ...]
    sources: tuple[Prompt, ...] = ()
    frame_rate: float | None = None

    def rows(self, index: Index) -> Samples:
        """The samples ``index``."""
        return replace(
            self,
            media=self.media[list(index)],
            prompts=tuple(self.prompts[i] for i in index),
            groups=self.groups[list(index)],
            metadata=tuple(self.metadata[i] for i in index),
            sources=tuple(self.sources[i] for i in index) if self.sources else (),
        )


Answer = Mapping[str, "Tensor | Future[Tensor]"]
"""What a reward answers: {label: scores [B]}, a value of which may be on its way."""


Agree = Callable[[Sequence[Hashable]], Sequence[Hashable]]
"""From the kinds of forward that a rank needs to those that all ranks go through together."""


def as_they_are(kinds: Sequence[Hashable]) -> Sequence[Hashable]:
    """The kinds of forward of a model whose weights are whole where it runs."""
    return kinds


def alone(work: Callable[[bool], Any]) -> Any:
    """What ``work`` gives where there is one rank."""
    return work(True)


@dataclass(frozen=True)
class Runtime:
    """Where a model is to run, and the dtype its frozen weights are stored in.

    ``agree``: the kinds of forward that all ranks go through together, of those that it needs; for ``flow.forward_by_kind``.
    ``places``: whether what ``load`` returns goes through :func:`flowfactory.stored_weights.place` before it runs, so that
    weights may stay in their files. ``in_turn(work)``, which all ranks call: what ``work(True)`` gives on the first rank of a
    machine, then ``work(False)`` on its others, which find what the first one downloaded.
    ``context``: the ranks that share a forward, which is to have a multiple of as many tokens.
    """

    device: torch.device
    dtype: torch.dtype
    agree: Agree = as_they_are
    places: bool = False
    in_turn: Callable[[Callable[[bool], Any]], Any] = alone
    context: int = 1


@dataclass(frozen=True)
class Trainable:
    """What ``load`` returns.

    modules: the transformers that train, by their name in the diffusers pipeline, in host memory.
    training: ``"full"``, or the LoRA options; core applies them.
    lora_targets: endings of the names of the linear layers that adapters go on by default.
    blocks: names of the repeated module classes, what sharding and checkpointing wrap.
    encoding: everything beside a prompt that changes what ``encode`` makes of it; the key of the cache.
    guided: whether guidance above 1 needs a negative prompt.
    frozen: transformers that sampling needs too and that do not train, by their name; core moves them as it does the others.
    unread: beginnings of the names of weights, ``transformer.`` included, that make what nothing reads; they do not train.
    negative_media: whether a negative prompt is encoded together with its prompt's pictures and videos.
    canvas_matters: whether what ``encode`` makes depends on the size and frames that are to be drawn.
    frame_rate: frames a second of what it draws, None for pictures.
    convert_adapters: from tensors by name of another program's adapters to diffusers' names,
    ``transformer.<layer>.lora_A.weight``, with ``<layer>.alpha`` where alpha is not the rank; ValueError: it cannot. None: no
    other names than those are read.
    media_encoding: as ``encoding``, of what ``encode_media`` makes of pictures and videos; empty: that of ``encoding``.
    sigmas: the schedule [steps + 1] that it draws so many steps on a canvas with, for what learns without drawing; None: even
    steps from 1 to 0.
    """

    modules: Mapping[str, nn.Module]
    training: Any
    lora_targets: tuple[str, ...]
    blocks: tuple[str, ...]
    encoding: str
    guided: bool
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    negative_media: bool = False
    canvas_matters: bool = False
    frame_rate: float | None = None
    convert_adapters: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None
    sigmas: Callable[[int, Canvas], Tensor] | None = None
    media_encoding: str = ""


@dataclass(frozen=True)
class RunInfo:
    """A run as its observers see it: its directory, resolved config and number of iterations; ``say`` prints a line of it."""

    directory: Path
    config: Any
    iterations: int
    say: Say = lambda _: None


Velocity = Callable[[Tensor, Tensor, Conditions, float], Tensor]
"""``velocity(latents [B, ...], sigma [B], conditions, guidance) -> [B, ...]``."""
