"""The one model over pipelines of diffusers: its hooks.

Opening the checkpoint, guidance, conditions of different shapes, sampling and replaying are here, once; what differs is in a
:class:`~flowfactory.models.family.Family`.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from flowfactory import flow
from flowfactory.canvas import Canvas
from flowfactory.data.condition_checks import one_each
from flowfactory.discovery.installed_version import installed_version
from flowfactory.discovery.source_places import place_of
from flowfactory.discovery.specs import hookimpl
from flowfactory.errors import UserError
from flowfactory.flow.rollout import ask_once
from flowfactory.models.adapter_layouts import read_adapters
from flowfactory.models.attention import use_attention
from flowfactory.models.encoder_dtype import choose_encoder_dtype, round_entry
from flowfactory.models.family import Entry, Parts, start_from_noise
from flowfactory.models.family_options import FamilyOptions
from flowfactory.models.feature_cache import Remembering, remember_nothing, use_feature_cache
from flowfactory.models.library_imports import without_peft
from flowfactory.models.tokenizers import using_template
from flowfactory.types import (
    Agree,
    Conditions,
    Evaluation,
    Index,
    Prompt,
    Runtime,
    SamplingPlan,
    Shapes,
    Step,
    Trainable,
    Trajectory,
    as_they_are,
    shapes_of,
    take,
)

FIRST_SIGMA = 0.99  # of what starts from pure noise: schedulers that begin a little below 1 are released


class FamilyModel:
    """The hooks of a model, from its family. The transformer is run by ``velocity`` alone, in sampling and in training."""

    def __init__(self, config: FamilyOptions) -> None:
        self._config, self._family = config, config.family
        self._checkpoint = config.checkpoint
        self._transformers: dict[str, torch.nn.Module] = {}
        self._parts: Parts  # from load on
        self._dtype: torch.dtype

    @hookimpl
    def load(self, runtime: Runtime) -> Trainable:
        """The transformers in host memory, with the VAE and the scheduler beside them."""
        family, self._dtype = self._family, runtime.dtype
        kept, trained = runtime.in_turn(self._fetch)
        # weights that train are the master weights, and must not be rounded on the way in
        dtypes = self._dtypes(kept, self._dtype, trained if self._config.train == "full" else ())
        staying = {*trained, *family.transformers} if runtime.places else ()
        pipeline = self._checkpoint.open(kept, dtypes, staying)
        self._parts = Parts(pipeline, self._config, runtime.device, runtime.agree, runtime.context)
        _freeze([pipeline.vae], self._device(self._config.decoder_on))
        if self._device(self._config.decoder_on).type == "cuda":
            channels_last(pipeline.vae)
        transformers = {name: module for name in family.transformers if (module := getattr(pipeline, name, None)) is not None}
        self._transformers = transformers
        use_attention(transformers.values(), self._config.attention)
        if self._config.tiling:
            if not hasattr(pipeline.vae, "enable_tiling"):
                raise UserError(f"model.tiling: {type(pipeline.vae).__name__} cannot decode in tiles; leave it out")
            pipeline.vae.enable_tiling()
        return Trainable(
            modules={name: transformers[name] for name in trained},
            training=self._config.train,
            lora_targets=family.lora_targets,
            blocks=family.blocks,
            encoding=self._encoding(),
            guided=family.guided(self._checkpoint),
            frozen={name: module for name, module in transformers.items() if name not in trained},
            unread=family.unread(self._parts),
            negative_media=family.negative_media,
            canvas_matters=family.canvas_matters,
            frame_rate=family.frame_rate(self._parts),
            convert_adapters=partial(read_adapters, family.comfyui, transformers, type(pipeline)),
            media_encoding=self._media_encoding(),
            sigmas=lambda steps, canvas: family.sigmas(self._parts, steps, canvas).float().cpu(),
        )

    def _fetch(self, online: bool) -> tuple[list[str], tuple[str, ...]]:
        """The parts beside the encoders, now on this machine, and those that train. UserError: they are not what is needed."""
        family, checkpoint = self._family, self._checkpoint
        with checkpoint.asking_the_hub(online):
            if online:  # before any weight is read, also of what is on the hub
                self._check_targets()
            others = {*family.encoders, *family.unopened}
            kept = [name for name, there in checkpoint.parts.items() if there and name not in others]
            trained = family.trained_transformers(checkpoint, self._config)
            checkpoint.require((*family.needed, *trained))
            checkpoint.fetch(kept)
        return kept, trained

    def _check_targets(self) -> None:
        try:
            self._config.check_targets()
        except ValueError as error:
            raise UserError(str(error)) from error

    def _device(self, place: str) -> torch.device:
        return torch.device("cpu") if place == "host" else self._parts.device

    def _dtypes(self, names: Iterable[str], default: torch.dtype, whole: Iterable[str] = ()) -> dict[str, torch.dtype]:
        """Of the parts ``names``: ``default``, but float32 of ``whole`` and of what the family says."""
        exact = {*whole, *self._family.float32}
        return {"default": default} | {name: torch.float32 for name in names if name in exact}

    @property
    def _encoders_in(self) -> torch.dtype:
        return choose_encoder_dtype(self._config.encoders_in, self._dtype, self._parts.device.type)

    def _encoding(self) -> str:
        """Everything beside the prompt that changes what ``encode`` makes."""
        family, config = self._family, self._config
        options = config.model_dump(mode="json", exclude={*FamilyOptions.model_fields, *family.not_encoded})
        options |= {} if config.variant is None else {"variant": config.variant}
        names = (*family.encoders, *family.encoded_with)
        tiled = config.tiling and "vae" in family.encoded_with  # pictures are encoded in tiles too
        # torchvision, where it is installed, prepares pictures otherwise
        pictures = ("pillow", "torchvision") if any(most for _, most in config.takes) else ()
        libraries = ("diffusers", "transformers", *pictures)
        versions = [installed_version(name) for name in (family.distribution, *libraries)]
        dtypes = [str(self._dtype), str(self._encoders_in)]
        # such as which layers of the text encoder are read
        settings = [self._checkpoint.arguments] if self._checkpoint.arguments else []
        return json.dumps([self._checkpoint.identity(names), family.pipelines[0], options, tiled, dtypes, versions, *settings])

    def _media_encoding(self) -> str:
        """Everything beside a picture or a video that changes what encode_media makes."""
        versions = [installed_version(name) for name in (self._family.distribution, "diffusers", "pillow")]
        dtype = str(self._parts.pipeline.vae.dtype)
        return json.dumps(
            [self._checkpoint.identity(("vae",)), self._family.pipelines[0], self._config.tiling, dtype, versions]
        )

    @hookimpl
    def encode(self, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
        """The tensors of each prompt, by encoders that are there for as long as this takes."""
        family, loaded = self._family, self._parts.pipeline
        # beside the encoders, what encoding looks at: the VAE, and sizes in the transformer's config
        given = {name: getattr(loaded, name) for name in self._checkpoint.parts if name not in family.encoders}
        dtypes = self._dtypes(family.encoders, self._encoders_in)
        pipeline = self._checkpoint.open(family.encoders, dtypes, **given)
        if family.chat_template and not pipeline.tokenizer.chat_template:
            lacking = f"tokenizer of {self._checkpoint.path} has no chat template, which stands in chat_template.jinja"
            raise UserError(f"model.path: {lacking}; get it again, whole")
        parts = Parts(pipeline, self._config, self._device(self._config.encoders_on))
        _freeze([pipeline.vae, *(getattr(pipeline, name, None) for name in family.encoders)], parts.device)
        try:
            for start in range(0, len(prompts), family.encode_batch):
                asked = prompts[start : start + family.encode_batch]
                with torch.no_grad(), using_template(f"model.path: tokenizer of {self._checkpoint.path}"):
                    made = family.encode(parts, asked, canvas)
                    entries = list(one_each(made, len(asked), f"model: {place_of(family.encode)}"))
                made_in, exact = self._encoders_in, family.exact
                yield from (round_entry(entry, made_in, self._dtype, exact) for entry in entries)
        finally:
            _freeze([loaded.vae], self._device(self._config.decoder_on))
        del pipeline, parts, given
        gc.collect()
        if self._parts.device.type == "cuda":
            torch.cuda.empty_cache()

    @hookimpl
    def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
        """Media, clean latents and recorded steps."""
        family, parts = self._family, self._parts
        noise = flow.noise(plan, family.shape(parts, plan.canvas), device=parts.device)
        sigmas = family.sigmas(parts, plan.steps, plan.canvas).float().cpu()
        flow.check_sigmas(sigmas, plan.steps, FIRST_SIGMA if family.start is start_from_noise else 0)
        start = family.start(parts, noise, sigmas[0], conditions)
        with use_feature_cache(self._transformers.values(), plan.cache_threshold) as remembering:
            agrees = (ask_once(parts.agree), ask_once(parts.agree))
            drawing = partial(self._velocity, replace(parts, agree=as_they_are), agrees, remembering)
            latents, steps = flow.rollout(drawing, start, sigmas, conditions, plan, remembering.forget)
        return Trajectory(self.decode(latents), latents, sigmas, steps)

    @hookimpl
    def log_prob(self, step: Step) -> Evaluation:
        """One forward at the step's latents."""
        return flow.evaluate(self.velocity(step.latents, step.sigma, step.conditions, step.guidance), step)

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        """[B, ...], classifier-free guidance included where it is above 1.

        Samples whose conditions have other shapes have forwards of their own, unless the family pads.
        """
        agree = self._parts.agree
        return self._velocity(self._parts, (agree, agree), remember_nothing, latents, sigma, conditions, guidance)

    def _velocity(
        self,
        parts: Parts,
        agrees: tuple[Agree, Agree],
        remembering: Remembering,
        latents: Tensor,
        sigma: Tensor,
        conditions: Conditions,
        guidance: float,
    ) -> Tensor:
        """See :meth:`velocity`; ``agrees`` are for the forwards of the conditions, and of negative ones that have their own."""
        if len({self._kind(shapes) for shapes in conditions.shapes}) == 1:
            agrees = (as_they_are, as_they_are)  # no rank has another kind, whichever samples it has
        forward = partial(self._forward, parts, remembering, guidance)
        negative = conditions.negative if guidance > 1 else None
        if negative is None:
            return forward(agrees[0], latents, sigma, conditions)
        if negative.detached:
            with flow.negative_branch(negative):
                without = forward(agrees[1], latents, sigma, negative)
            given = forward(agrees[0], latents, sigma, conditions)
        else:
            joint = Conditions(negative.entries + conditions.entries)
            without, given = forward(agrees[0], torch.cat([latents] * 2), torch.cat([sigma] * 2), joint).chunk(2)
        return self._family.guide(parts, given, without, guidance, sigma)

    def _forward(
        self,
        parts: Parts,
        remembering: Remembering,
        guidance: float,
        agree: Agree,
        latents: Tensor,
        sigma: Tensor,
        conditions: Conditions,
    ) -> Tensor:
        """[B, ...] without classifier-free guidance; the guidance is for what is embedded."""

        def forward(rows: Index, kind: Hashable) -> Tensor:
            with remembering(kind):
                if len(rows) == len(latents):
                    return self._family.velocity(parts, latents, sigma, conditions, guidance)
                chosen, times = take(latents, rows), take(sigma, rows)
                return self._family.velocity(parts, chosen, times, conditions.rows(rows), guidance)

        kinds = [self._kind(shapes_of(entry)) for entry in conditions.entries]
        with without_peft():
            return flow.forward_by_kind(kinds, forward, agree)

    def _kind(self, shapes: Shapes) -> Shapes:
        """What conditions of ``shapes`` can share a forward with: themselves, whatever is padded."""
        padded = self._family.padded
        return tuple((name, shape[name in padded :]) for name, shape in shapes)

    @hookimpl
    def encode_media(self, media: Tensor) -> Tensor:
        """Clean latents [B, ...] of media, float32, where the decoder is. UserError: the family's VAE encodes none."""
        if self._family.encode_media is None:
            raise UserError(f"model: {type(self._config).__name__} encodes no media, so that it cannot learn from records")
        return self._by_vae(self._family.encode_media, media)

    def decode(self, latents: Tensor) -> Tensor:
        """Media [B, ...], float32; in [0, 1] up to what the decoder overshoots."""
        return self._by_vae(self._family.decode, latents)

    def _by_vae(self, change: Callable[[Parts, Tensor], Tensor], given: Tensor) -> Tensor:
        """What ``change`` makes of ``given`` [B, ...], float32, ``decode_batch_size`` at once."""
        parts = replace(self._parts, device=self._device(self._config.decoder_on))
        given = given.to(parts.device)
        most = self._config.decode_batch_size or len(given)
        # the VAE computes in the dtype it is stored in: some are float32 since less is visible
        with torch.autocast(given.device.type, enabled=False):
            pieces = [change(parts, given[start : start + most]) for start in range(0, len(given), most)]
        return torch.cat(pieces).float()


def _freeze(modules: Iterable[object], device: torch.device) -> None:
    for module in modules:
        if isinstance(module, torch.nn.Module):  # a tokenizer is not
            module.requires_grad_(False).eval().to(device)


def channels_last(module: torch.nn.Module) -> None:
    """Store the kernels of convolutions, and so what comes of them, channels last, as CUDA's fast kernels read them."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])
