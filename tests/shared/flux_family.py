"""Tiny FLUX checkpoints, our models over them, and what diffusers' own pipelines draw from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import tiny_flux
from diffusers import DiffusionPipeline
from families import open_bench
from torch import Tensor

from flowfactory import Canvas, Prompt, flow
from flowfactory.data.batches import make_batch
from flowfactory.testing import Bench, Drawn, draw_with_pipeline
from flowfactory_flux.flux1 import Flux1Config
from flowfactory_flux.flux1_kontext import Flux1KontextConfig
from flowfactory_flux.flux2 import Flux2Config
from flowfactory_flux.flux2_klein import Flux2KleinConfig

BUILDERS: dict[str, Callable[[Path], Path]] = {
    "dev": tiny_flux.flux1,
    "schnell": lambda folder: tiny_flux.flux1(folder, dev=False),
    "kontext": lambda folder: tiny_flux.flux1(folder, kontext=True),
    "flux2": tiny_flux.flux2,
    "klein": lambda folder: tiny_flux.klein(folder, distilled=True),
    "klein-base": tiny_flux.klein,
}
NAMES = {"dev": "flux1", "schnell": "flux1", "kontext": "flux1-kontext", "klein-base": "flux2-klein", "klein": "flux2-klein"}
CONFIGS: dict[str, Any] = {
    "dev": Flux1Config,
    "schnell": Flux1Config,
    "kontext": Flux1KontextConfig,
    "flux2": Flux2Config,
    "klein": Flux2KleinConfig,
    "klein-base": Flux2KleinConfig,
}
TOKENS = {"dev": 12, "schnell": 12, "kontext": 12, "flux2": 64, "klein": 24, "klein-base": 24}
EVERY = tuple(BUILDERS)
TAKES_PICTURES = ("kontext", "flux2", "klein", "klein-base")
PICTURE_SIZES = ((70, 66), (67, 101), (70, 66))
LONG = "a photo of a red circle and a blue square of a cat " * 4
TEXTS = ("", "cat", "a red cat", "blue", "green square", "a photo of a red circle", LONG)


def make_config(variant: str, path: Path, **options: Any) -> Any:
    """The config of our model over ``path``, with few tokens of text and pictures as small as they are."""
    small = {"auto_resize": False} if variant == "kontext" else {}
    return CONFIGS[variant].model_validate(
        {"path": str(path), "train": "full", "max_sequence_length": TOKENS[variant], **small, **options}
    )


def make_prompts(*texts: str, images: Sequence[Path] = (), negative: str | None = None) -> list[Prompt]:
    """A prompt of each text, all with the same pictures and negative prompt."""
    return [Prompt(text, images=tuple(images), negative=negative) for text in texts]


class Flux:
    """What a session of tests shares, below ``root``; a test that changes a checkpoint's files copies it first."""

    def __init__(self, root: Path) -> None:
        self.cache = root / "cache"
        self.pictures = tuple(tiny_flux.picture(root / f"{i}.png", size, seed=i) for i, size in enumerate(PICTURE_SIZES))
        self.folder = cache(lambda variant: BUILDERS[variant](root / variant))
        self.pipeline = cache(self.fresh_pipeline)
        self._shared = cache(self._open)

    def fresh_pipeline(self, variant: str) -> Any:
        """The checkpoint as diffusers opens it."""
        pipeline = DiffusionPipeline.from_pretrained(self.folder(variant))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def prompts(self, variant: str, *texts: str) -> list[Prompt]:
        """A prompt of each text, with a picture where the variant insists on one."""
        return make_prompts(*texts, images=self.pictures[:1] if variant == "kontext" else ())

    def model(
        self,
        variant: str,
        prompts: Sequence[Prompt],
        size: tuple[int, int] = (48, 32),
        steps: int = 3,
        guidance: float = 1.0,
        **options: Any,
    ) -> Bench:
        """Our model with a plan of one sample a prompt along the ODE; ``options`` are its config's.

        Models with the same options share their weights: what changes them opens one of its own.
        """
        made = self._shared(variant, tuple(sorted(options.items())))
        batch = make_batch([replace(prompt, index=index) for index, prompt in enumerate(prompts)], 1)
        plan = replace(made.plan, steps=steps, canvas=Canvas(*size), guidance=guidance, keys=batch.keys)
        conditions = made.sampler.conditions(batch.prompts, guidance, plan.canvas)
        return replace(made, batch=batch, plan=plan, conditions=conditions)

    def _open(self, variant: str, options: tuple[tuple[str, Any], ...]) -> Bench:
        made = self.own(variant, **dict(options))
        brought = {"kontext": [(0,), (1,), (2,)]}.get(variant, [(), (0,), (1,), (2,), (0, 1), (1, 0), (0, 1, 2)])
        several = [self.bringing(*places, texts=("a red cat", "blue")) for places in brought if variant in TAKES_PICTURES]
        # most of what the tests ask for, for which the encoders are opened once
        made.sampler.prepare([(sum(several, self.prompts(variant, *TEXTS)), made.plan.canvas)])
        return made

    def mixed(self, variant: str) -> list[Prompt]:
        """Five prompts with other texts, and other numbers and sizes of pictures where the variant takes them."""
        if variant not in TAKES_PICTURES:
            return make_prompts(*TEXTS[:4], LONG)
        places: tuple[tuple[int, ...], ...] = ((0,), (1,), (2,), (1,), (0,))
        if variant != "kontext":
            places = ((), (0,), (1,), (1, 0), (2,))
        texts = ("blue", "a red cat") * 3
        return [self.bringing(*brought, texts=[text])[0] for brought, text in zip(places, texts, strict=False)]

    def bringing(self, *places: int, texts: Sequence[str]) -> list[Prompt]:
        """A prompt of each text, all with the pictures at ``places``."""
        return make_prompts(*texts, images=[self.pictures[place] for place in places])

    def own(self, variant: str, *texts: str, guidance: float = 1.0, **options: Any) -> Bench:
        """A model like that of :meth:`model` with weights of its own, for prompts of ``texts``."""
        config = make_config(variant, self.folder(variant), **options)
        return open_bench(config, self.cache, self.prompts(variant, *(texts or ("cat",))), (48, 32), 3, guidance)


def initial_noise(made: Bench, pipeline: Any) -> Tensor:
    """The start of each sample of the plan [B, C, H, W]."""
    (height, width, _), channels = made.plan.canvas, pipeline.transformer.config.in_channels
    patch, channels = (2, channels) if is_flux2(pipeline) else (1, channels // 4)
    cell = patch * pipeline.vae_scale_factor
    return flow.noise(made.plan, (channels, height // cell, width // cell))


def is_flux2(pipeline: Any) -> bool:
    return type(pipeline).__name__.startswith("Flux2")


def drawn_by(pipeline: Any, made: Bench, **options: Any) -> Drawn:
    """What the pipeline draws from the noise, prompts, size and steps of ``made``; ``options`` go to its call."""
    shape = initial_noise(made, pipeline).shape[1:]
    if type(pipeline).__name__ == "FluxKontextPipeline":
        options = {"max_area": made.plan.canvas.height * made.plan.canvas.width, "_auto_resize": False, **options}

    def pack(pipeline: Any, noise: Tensor) -> Any:
        return noise if is_flux2(pipeline) else pipeline._pack_latents(noise, *noise.shape)

    def unpack(pipeline: Any, latents: Tensor, canvas: Canvas) -> Any:
        if is_flux2(pipeline):
            return latents.transpose(1, 2).reshape(-1, *shape)
        return pipeline._unpack_latents(latents, canvas.height, canvas.width, pipeline.vae_scale_factor)

    return draw_with_pipeline(pipeline, made, shape, pack, unpack, **options)
