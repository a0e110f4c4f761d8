"""What a family of pipelines of diffusers has to say to be run by :mod:`.family_model`.

A family is a :class:`Family` of pure functions: how prompts become tensors, the shape of the noise, the schedule, the velocity
and the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.models.pretrained import Pretrained
from flowfactory.models.resolution import Grid
from flowfactory.types import Agree, Conditions, Prompt, as_they_are

ENCODE_BATCH = 32
MOST_KEPT = 64  # prompts may bring pictures of any size
Entry = Mapping[str, Tensor]
"""What ``encode`` makes of one prompt: tensors by name, without a batch axis."""
T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """What the functions of a family work on: the pipeline with the parts that are open, the model's options, the device.

    ``agree``: see :class:`~flowfactory.types.Runtime`; for kinds that follow from sigma. While samples are drawn it asks
    nobody: all ranks are at one sigma. ``context``: see there, too.
    """

    pipeline: Any
    options: Any
    device: torch.device
    agree: Agree = as_they_are
    context: int = 1
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returned the first time: for tensors that ``key``, such as shapes, decides, and each forward needs."""
        if key not in self._kept:
            if len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = make()
        found: T = self._kept[key]
        return found


def linear_guidance(parts: Parts, given: Tensor, without: Tensor, guidance: float, sigma: Tensor) -> Tensor:
    """Classifier-free guidance, arXiv:2207.12598: from the velocity without the prompt towards and past the given one."""
    return without + guidance * (given - without)


def extrapolated_guidance(parts: Parts, given: Tensor, without: Tensor, guidance: float, sigma: Tensor) -> Tensor:
    """Past the velocity with the prompt, which makes ``guidance`` what is 1 + guidance elsewhere."""
    return given + guidance * (given - without)


def start_from_noise(parts: Parts, noise: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
    """Where a trajectory starts that nothing but noise is known of."""
    return noise


def train_transformer(checkpoint: Pretrained, options: Any) -> tuple[str, ...]:
    """The transformer of pipelines that have one."""
    return ("transformer",)


def no_frame_rate(parts: Parts) -> float | None:
    """The frame rate of what does not move."""
    return None


def every_checkpoint(checkpoint: Pretrained) -> bool:
    """For what holds of every checkpoint of a family."""
    return True


def no_unread_weights(parts: Parts) -> tuple[str, ...]:
    """For families all of whose weights count."""
    return ()


@dataclass(frozen=True)
class Family:
    """What is particular to a family of pipelines.

    distribution: the package it is in; its version is part of the key of encoded prompts.
    pipelines: the diffusers class that opens it, then others whose checkpoints it may be.
    encoders: the parts that only ``encode`` needs; ``encoded_with``: other parts whose files change what it makes.
    lora_targets, blocks: see :class:`~flowfactory.types.Trainable`.
    encode: tensors of each prompt, without a batch axis; called under ``no_grad`` with at most ``encode_batch`` prompts. It
    looks at all options but ``not_encoded``.
    shape: of the latents of one sample. sigmas: [steps + 1], as the checkpoint's scheduler has them, down to 0.
    velocity: [B, ...] without classifier-free guidance, for conditions of equal shapes except along the first axis of what
    ``padded`` names; the guidance is for what is embedded. guide: joins the velocity with the prompt and the one with the
    negative prompt. guided: whether the checkpoint has classifier-free guidance; takes_guidance: whether any guidance means
    something to it; both as far as files on this machine tell.
    start: latents at the first sigma. decode: media in [0, 1] of latents, not clamped.
    grid: what it can draw. trained_transformers: those that train, by the checkpoint and the options. transformers: all there
    may be.
    comfyui: how ComfyUI's loader of adapters calls the linear layers: a regular expression of a layer's whole name and what it
    is there, the first that matches; none where ComfyUI has no such model. experts: what users call each of ``transformers``.
    optional: the parts among all these that a checkpoint need not have. unopened: those that its pipeline has and nothing here
    reads. unused: by part, patterns of names of weights that make no difference, see
    :func:`~flowfactory.models.refuse_gaps`.
    chat_template: whether its tokenizer must have one. float32: parts that are never rounded; exact: what ``encode`` makes that
    is not rounded to the run's dtype.
    unread, frame_rate, negative_media, canvas_matters: see Trainable.
    encode_media: clean latents of media, the other way round of ``decode``: the mean of the VAE's posterior; None: it learns
    from no records.
    """

    distribution: str
    pipelines: tuple[str, ...]
    encoders: tuple[str, ...]
    encode: Callable[[Parts, Sequence[Prompt], Canvas], Iterable[Entry]]
    shape: Callable[[Parts, Canvas], tuple[int, ...]]
    sigmas: Callable[[Parts, int, Canvas], Tensor]
    velocity: Callable[[Parts, Tensor, Tensor, Conditions, float], Tensor]
    decode: Callable[[Parts, Tensor], Tensor]
    blocks: tuple[str, ...]
    lora_targets: tuple[str, ...]
    grid: Callable[[Pretrained], Grid]
    guide: Callable[[Parts, Tensor, Tensor, float, Tensor], Tensor] = linear_guidance
    guided: Callable[[Pretrained], bool] = every_checkpoint
    takes_guidance: Callable[[Pretrained], bool] = every_checkpoint
    start: Callable[[Parts, Tensor, Tensor, Conditions], Tensor] = start_from_noise
    unread: Callable[[Parts], tuple[str, ...]] = no_unread_weights
    trained_transformers: Callable[[Pretrained, Any], tuple[str, ...]] = train_transformer
    transformers: tuple[str, ...] = ("transformer",)
    experts: tuple[str, ...] = ("",)
    comfyui: tuple[tuple[str, str], ...] = ()
    encoded_with: tuple[str, ...] = ()
    encode_batch: int = ENCODE_BATCH
    not_encoded: tuple[str, ...] = ()
    padded: frozenset[str] = frozenset()
    optional: tuple[str, ...] = ()
    unopened: tuple[str, ...] = ()
    unused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    chat_template: bool = False
    float32: tuple[str, ...] = ()
    exact: frozenset[str] = frozenset()
    frame_rate: Callable[[Parts], float | None] = no_frame_rate
    negative_media: bool = False
    canvas_matters: bool = False
    encode_media: Callable[[Parts, Tensor], Tensor] | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """The parts that a checkpoint must have."""
        parts = (self.transformers[0], "vae", "scheduler", *self.encoders)
        return tuple(name for name in parts if name not in self.optional)
