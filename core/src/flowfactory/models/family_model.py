"""The one model over pipelines of diffusers: its options, and its hooks.

Opening the checkpoint, guidance, conditions of different shapes, sampling and replaying are here, once; what differs is in a
:class:`~flowfactory.models.family.Family`.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import flow
from flowfactory.canvas import Canvas
from flowfactory.config.attention import Attention, attention_unavailable, attention_untrainable
from flowfactory.config.component import LoraTraining
from flowfactory.config.paths import CheckpointPath
from flowfactory.data.condition_checks import one_each
from flowfactory.discovery.installed_version import installed_version
from flowfactory.discovery.source_places import place_of
from flowfactory.discovery.specs import hookimpl
from flowfactory.errors import UserError
from flowfactory.flow.rollout import ask_once
from flowfactory.models.adapter_layouts import read_adapters
from flowfactory.models.attention import use_attention
from flowfactory.models.checkpoint_files import reading
from flowfactory.models.context_checks import check_canvases, check_heads
from flowfactory.models.encoder_dtype import choose_encoder_dtype, round_entry
from flowfactory.models.family import Entry, Parts, start_from_noise
from flowfactory.models.feature_cache import Remembering, remember_nothing, use_feature_cache
from flowfactory.models.library_imports import without_peft
from flowfactory.models.on_meta import check_lora_targets
from flowfactory.models.pretrained import Pretrained
from flowfactory.models.resolution import Grid
from flowfactory.models.single_file_option import SingleFileConfig
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

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig

FIRST_SIGMA = 0.99  # of what starts from pure noise: schedulers that begin a little below 1 are released


TEXT_WIDTHS = ("joint_attention_dim", "text_dim", "cap_feat_dim", "caption_channels")
"""Keys of transformers' configs that say how wide the embedding of a token of the text is."""
ENTRY_HEADER = 256
"""Bytes of a file of the cache beside its tensors, about."""


class FamilyConfig(SingleFileConfig):
    """What the options of every model over a diffusers pipeline share."""

    caches_features: ClassVar[bool] = True
    detaches_negatives: ClassVar[bool] = True

    path: CheckpointPath = Field(description="a diffusers folder or a hub id")
    free_to_change = ("decode_batch_size", "tiling", "encoders_on", "decoder_on", "attention")

    variant: str | None = Field(
        None,
        pattern=r"^\w+$",
        description="read the files of this variant, such as fp16 for *.fp16.safetensors, where a part has it",
    )
    decode_batch_size: int | None = Field(
        None, ge=1, le=100_000, description="decoded at once; as many as are drawn when left out"
    )
    tiling: bool = Field(False, description="decode in tiles, which takes less memory for large sizes")
    attention: Attention = Field(
        "auto", description="what computes the transformer's attention; auto: what PyTorch chooses; sage, flash3: to draw alone"
    )
    encoders_on: Literal["device", "host"] = Field("device", description="where prompts are encoded, each once")
    encoders_in: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="the dtype of the text encoders; auto: bf16 on an accelerator, else the run's"
    )
    decoder_on: Literal["device", "host"] = Field("device", description="where the VAE is, and what was drawn is decoded")

    @property
    def checkpoint(self) -> Pretrained:
        """What ``path`` names."""
        return Pretrained(self.path, self.family.pipelines, self.variant, self.family.unused, self.single_files)

    def encoded_tokens(self) -> int | None:
        """The most tokens of an encoded text; None where nothing bounds them."""
        tokens: int | None = getattr(self, "max_sequence_length", None)
        return tokens

    def encoded_bytes(self, precision: int) -> int | None:
        """Tokens by the width that the transformer takes them in, and one vector where it takes one of the whole text."""
        settings, tokens = self.checkpoint.config(self.family.transformers[0]), self.encoded_tokens()
        width: int | None = next((settings[key] for key in TEXT_WIDTHS if isinstance(settings.get(key), int)), None)
        if tokens is None or width is None:
            return None
        pooled = settings.get("pooled_projection_dim")
        return (tokens * width + (pooled if isinstance(pooled, int) else 0)) * precision + ENTRY_HEADER

    def check_checkpoint(self) -> None:
        """ValueError: the checkpoint is damaged or another pipeline's, as far as files on this machine tell."""
        try:
            self.checkpoint.check(self.family.needed)
        except UserError as error:
            raise ValueError(str(error)) from error

    def check(self, run: RunConfig) -> None:
        """The checkpoint is whole, sizes and numbers of frames can be drawn, and guidance means something."""
        if reason := attention_unavailable(self.attention, run, masked=bool(self.family.padded)):
            raise ValueError(reason)
        self.check_checkpoint()
        with reading(f"model.path: the configs of {self.path}", ValueError):
            grid = self.family.grid(self.checkpoint)
        evaluation = run.evaluation
        grid.check("sampling", run.sampling.size, run.sampling.frames)
        grid.check("evaluation", evaluation.size, evaluation.frames)
        if grid.stride is not None and run.sampling.frames is None:
            raise ValueError(f"sampling.frames is missing: this model draws videos of 1 + a multiple of {grid.stride} frames")
        if run.distributed.context > 1 and self.context_parallel:
            self.check_context(run, grid)
        if self.checkpoint.config(""):
            self.check_targets()
        chosen = {"sampling": run.sampling.guidance, "evaluation": evaluation.guidance, "algorithm": run.algorithm.guidance}
        for section, guidance in chosen.items():
            if guidance is not None:
                self.check_guidance(section, guidance)

    def check_context(self, run: RunConfig, grid: Grid) -> None:
        """Raise ValueError where heads or tokens cannot be divided over the ranks that share a forward. Reads configs alone."""
        known = {name: self.checkpoint.config(name).get("num_attention_heads") for name in self.family.transformers}
        check_heads(run.distributed.context, {name: heads for name, heads in known.items() if heads})
        check_canvases(run, grid)

    def check_targets(self) -> None:
        """Raise ValueError where a LoRA target of ``train`` names no layer, or what takes no adapter. Reads no weights."""
        targets = self.train.lora.targets if isinstance(self.train, LoraTraining) else None
        if targets is not None:
            check_lora_targets(self.checkpoint, self.family.trained_transformers(self.checkpoint, self), targets)

    def check_guidance(self, section: str, guidance: float) -> None:
        """Raise ValueError where the guidance of ``section`` would mean nothing."""
        if guidance == 1:
            return
        if not self.family.takes_guidance(self.checkpoint):
            raise ValueError(f"{section}.guidance {guidance:g}: this checkpoint is distilled and takes none; leave it out")
        if guidance < 1:
            raise ValueError(f"{section}.guidance {guidance:g}: guidance begins at 1, where it is off; write 1, or more")

    def untrainable(self) -> str | None:
        return attention_untrainable(self.attention)

    def takes_negatives(self) -> bool:
        return self.family.guided(self.checkpoint)

    def build(self, label: str) -> FamilyModel:
        return FamilyModel(self)


class FamilyModel:
    """The hooks of a model, from its family. The transformer is run by ``velocity`` alone, in sampling and in training."""

    def __init__(self, config: FamilyConfig) -> None:
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
        )

    def _fetch(self, online: bool) -> tuple[list[str], tuple[str, ...]]:
        """The parts beside the encoders, now on this machine, and those that train. UserError: they are not what is needed."""
        family, checkpoint = self._family, self._checkpoint
        with checkpoint.asking_the_hub(online):
            if online:  # before any weight is read, also of what is on the hub
                self._check_targets()
            kept = [name for name, there in checkpoint.parts.items() if there and name not in family.encoders]
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
        options = config.model_dump(mode="json", exclude={*FamilyConfig.model_fields, *family.not_encoded})
        options |= {} if config.variant is None else {"variant": config.variant}
        names = (*family.encoders, *family.encoded_with)
        tiled = config.tiling and "vae" in family.encoded_with  # pictures are encoded in tiles too
        # torchvision, where it is installed, prepares pictures otherwise
        pictures = ("pillow", "torchvision") if any(most for _, most in config.takes) else ()
        libraries = ("diffusers", "transformers", *pictures)
        versions = [installed_version(name) for name in (family.distribution, *libraries)]
        dtypes = [str(self._dtype), str(self._encoders_in)]
        return json.dumps([self._checkpoint.identity(names), family.pipelines[0], options, tiled, dtypes, versions])

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

    def decode(self, latents: Tensor) -> Tensor:
        """Media [B, ...], float32; in [0, 1] up to what the decoder overshoots."""
        parts = replace(self._parts, device=self._device(self._config.decoder_on))
        latents = latents.to(parts.device)
        most = self._config.decode_batch_size or len(latents)
        starts = range(0, len(latents), most)
        # the VAE computes in the dtype it is stored in: some are float32 since less is visible
        with torch.autocast(latents.device.type, enabled=False):
            pieces = [self._family.decode(parts, latents[start : start + most]) for start in starts]
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
