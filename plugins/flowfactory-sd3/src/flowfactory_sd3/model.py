"""Stable Diffusion 3: encode, sample and log_prob over the parts of a StableDiffusion3Pipeline."""

from __future__ import annotations

import gc
import json
import math
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import (
    Conditions,
    Evaluation,
    ModelConfig,
    Prompt,
    Runtime,
    SamplingPlan,
    Step,
    Trainable,
    Trajectory,
    UserError,
    flow,
    hookimpl,
)
from flowfactory.conditions import checkpoint_identity
from flowfactory.config import CheckpointPath

if TYPE_CHECKING:
    from flowfactory.config import RunConfig

LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
ENCODE_BATCH = 32


class SD3Config(ModelConfig):
    """Any diffusers StableDiffusion3Pipeline: SD3, SD3.5 medium and large (arXiv:2403.03206)."""

    path: CheckpointPath = Field(description="a diffusers folder or a hub id")
    max_sequence_length: int = Field(256, ge=1, le=512, description="tokens of the T5 encoder")

    def check(self, run: RunConfig) -> None:
        """Sizes are multiples of what a latent patch covers, and within the positions the transformer has."""
        multiple, largest = self._sides()
        for key, size in (("sampling", run.sampling.size), ("evaluation", run.evaluation.size)):
            near = [int(min(max(multiple, round(side / multiple) * multiple), largest)) for side in size or ()]
            if size is not None and near != list(size):
                known = f" up to {largest}" if largest < math.inf else ""
                raise ValueError(
                    f"{key}.size {list(size)}: this model draws multiples of {multiple}{known}; the nearest is {near}"
                )

    def _sides(self) -> tuple[int, float]:
        """What a side of a picture is a multiple of, and the longest side there is."""
        try:
            vae = json.loads((Path(self.path) / "vae" / "config.json").read_text())
            transformer = json.loads((Path(self.path) / "transformer" / "config.json").read_text())
        except FileNotFoundError:
            return 16, math.inf  # what every released checkpoint covers; its longest side is not known before it is there
        channels = vae.get("block_out_channels") or vae["encoder_block_out_channels"]  # AutoencoderTiny writes the latter
        multiple = int(2 ** (len(channels) - 1) * transformer["patch_size"])
        return multiple, multiple * transformer["pos_embed_max_size"]

    def build(self, label: str) -> SD3:
        return SD3(self)


class SD3:
    """The transformer is run by ``velocity`` alone, in sampling and in training."""

    def __init__(self, config: SD3Config) -> None:
        self._config = config
        self._pipeline: Any = None
        self._commit: str | None = None
        self._runtime = Runtime(torch.device("cpu"), torch.float32)

    @hookimpl
    def load(self, runtime: Runtime) -> Trainable:
        """The transformer in host memory, with the VAE and the scheduler beside it."""
        self._runtime = runtime
        # weights that train are the master weights, and must not be rounded on the way in
        dtypes = {"default": runtime.dtype} | ({"transformer": torch.float32} if self._config.train == "full" else {})
        self._pipeline = self._parts(dtypes, **dict.fromkeys((*ENCODERS, *TOKENIZERS)))
        self._pipeline.vae.requires_grad_(False).to(runtime.device)
        return Trainable(
            modules={"transformer": self._pipeline.transformer},
            training=self._config.train,
            lora_targets=LORA_TARGETS,
            blocks=("JointTransformerBlock",),
            encoding=json.dumps(
                [
                    checkpoint_identity(self._config.path, (*ENCODERS, *TOKENIZERS)),
                    self._commit,
                    self._config.max_sequence_length,
                    str(runtime.dtype),
                    *(metadata.version(name) for name in ("flowfactory-sd3", "diffusers", "transformers")),
                ]
            ),
            guided=True,
        )

    @hookimpl
    def encode(self, prompts: Sequence[Prompt]) -> list[Mapping[str, Tensor]]:
        """embeds [L, D] and pooled [P] of each prompt, by the pipeline's own encode_prompt."""
        # encode_prompt reads the width of the absent T5 encoder's zeros off the transformer
        pipeline = self._parts(self._runtime.dtype, transformer=self._pipeline.transformer, vae=None)
        for name in ENCODERS:
            if getattr(pipeline, name) is not None:
                getattr(pipeline, name).to(self._runtime.device)
        entries: list[Mapping[str, Tensor]] = []
        for start in range(0, len(prompts), ENCODE_BATCH):
            texts = [prompt.text for prompt in prompts[start : start + ENCODE_BATCH]]
            with torch.no_grad():
                embeds, _, pooled, _ = pipeline.encode_prompt(
                    texts,
                    None,
                    None,
                    device=self._runtime.device,
                    do_classifier_free_guidance=False,
                    max_sequence_length=self._config.max_sequence_length,
                )
            entries += [{"embeds": e.clone(), "pooled": p.clone()} for e, p in zip(embeds, pooled, strict=True)]
        del pipeline
        gc.collect()
        return entries

    @hookimpl
    def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
        """Pictures in [0, 1], clean latents and recorded steps."""
        channels, scale = self._pipeline.transformer.config.in_channels, self._pipeline.vae_scale_factor
        shape = (channels, plan.size[0] // scale, plan.size[1] // scale)
        start = flow.noise(plan, shape, device=self._runtime.device)
        sigmas = self.sigmas(plan.steps, shape)
        latents, steps = flow.rollout(self.velocity, start, sigmas, conditions, plan)
        return Trajectory(self.decode(latents), latents, sigmas, steps)

    @hookimpl
    def log_prob(self, step: Step) -> Evaluation:
        """One forward at the step's latents."""
        return flow.evaluate(self.velocity(step.latents, step.sigma, step.conditions, step.guidance), step)

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        """[B, C, H, W], classifier-free guidance (arXiv:2207.12598) included where it is above 1."""
        transformer = self._pipeline.transformer
        embeds, pooled = conditions.stack("embeds"), conditions.stack("pooled")
        negative = conditions.negative if guidance > 1 else None
        if negative is not None:
            embeds = torch.cat([negative.stack("embeds"), embeds])
            pooled = torch.cat([negative.stack("pooled"), pooled])
            latents, sigma = torch.cat([latents] * 2), torch.cat([sigma] * 2)
        velocity: Tensor = transformer(
            hidden_states=latents.to(embeds.dtype),
            timestep=sigma * self._pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        if negative is None:
            return velocity
        without, given = velocity.chunk(2)
        return without + guidance * (given - without)

    def sigmas(self, steps: int, shape: Sequence[int]) -> Tensor:
        """[steps + 1], from the checkpoint's own scheduler, shifted as it says."""
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        scheduler = self._pipeline.scheduler
        options = {}
        if scheduler.config.get("use_dynamic_shifting"):
            patch = self._pipeline.transformer.config.patch_size
            bounds = {
                "base_seq_len": scheduler.config.get("base_image_seq_len", 256),
                "max_seq_len": scheduler.config.get("max_image_seq_len", 4096),
                "base_shift": scheduler.config.get("base_shift", 0.5),
                "max_shift": scheduler.config.get("max_shift", 1.16),
            }
            options["mu"] = calculate_shift((shape[-2] // patch) * (shape[-1] // patch), **bounds)
        scheduler.set_timesteps(steps, **options)
        sigmas: Tensor = scheduler.sigmas
        return sigmas

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1], float32."""
        vae = self._pipeline.vae
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        pictures: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    def _parts(self, dtype: torch.dtype | dict[str, torch.dtype], **given: Any) -> Any:
        """The pipeline with ``given`` in place of what the checkpoint has."""
        from diffusers import StableDiffusion3Pipeline
        from diffusers.utils import logging

        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        path = self._config.path
        try:
            index, self._commit = StableDiffusion3Pipeline.load_config(path, return_commit_hash=True)
        except OSError as error:
            raise UserError(f"model.path {path}: {' '.join(str(error).split())}") from error
        # a pipeline saved without its T5 encoder reloads only when told that there is none
        absent = [name for name, part in index.items() if part == [None, None]]
        return StableDiffusion3Pipeline.from_pretrained(path, dtype=dtype, **(dict.fromkeys(absent) | given))
