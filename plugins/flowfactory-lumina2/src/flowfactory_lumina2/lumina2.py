"""Lumina Image 2.0 over the parts of a Lumina2Pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from torch import Tensor

from flowfactory import Canvas, Conditions, Prompt, models
from flowfactory.models import Entry, Family, FamilyConfig, Grid, Parts, Pretrained

if TYPE_CHECKING:
    from flowfactory import RunConfig

VAE_SCALE = 8  # as the pipeline has it, whatever its VAE
LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3"),
)
ROUNDING = 1e-6  # of a sigma, which is one of the schedule's where guidance ends


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L_i, D] of each prompt: its own tokens, behind those of the system prompt unless it is a negative one."""
    pipeline = parts.pipeline
    system = pipeline.system_prompt if parts.options.system_prompt is None else parts.options.system_prompt
    embeds, mask = pipeline._get_gemma_prompt_embeds(
        [prompt.text if prompt.is_negative else f"{system} <Prompt Start> {prompt.text}" for prompt in prompts],
        device=parts.device,
        max_sequence_length=parts.options.max_sequence_length,
    )
    yield from ({"embeds": row[own.bool()]} for row, own in zip(embeds, mask, strict=True))


def sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
    """[steps + 1], with the shift of the checkpoint's scheduler."""
    return _schedule(parts, models.even_sigmas(steps))


def _schedule(parts: Parts, even: list[float]) -> Tensor:
    # where the shift is by the resolution, the pipeline takes the channels of the latents for their tokens
    shift = models.resolution_shift(parts, parts.pipeline.transformer.config.in_channels)
    return models.scheduler_sigmas(parts, len(even), sigmas=even, mu=shift)


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """[B, C, H, W]."""
    steps, (embeds, valid) = parts.pipeline.scheduler.config.num_train_timesteps, conditions.pad("embeds")
    towards_clean: Tensor = parts.pipeline.transformer(
        hidden_states=latents.to(embeds.dtype),
        timestep=1 - sigma * steps / steps,  # rounded as in the pipeline; 0 for noise
        encoder_hidden_states=embeds,
        encoder_attention_mask=valid,
        return_dict=False,
    )[0]
    return -towards_clean


def guide(parts: Parts, given: Tensor, without: Tensor, guidance: float, sigma: Tensor) -> Tensor:
    """Linear guidance, every row of it rescaled to the norm that it has with the prompt alone, for a share of the steps."""
    given = given.float()
    guided = models.linear_guidance(parts, given, without.float(), guidance, sigma)
    if parts.options.cfg_normalization:
        guided = guided * models.norm_ratio(given, guided, -1)
    if (share := parts.options.cfg_trunc_ratio) == 1:
        return guided
    end = parts.once(("end of guidance", share), lambda: float(_schedule(parts, [1.0, 1 - share])[1]))
    return models.guide_until(sigma <= end + ROUNDING, given, guided)


def grid(checkpoint: Pretrained) -> Grid:
    """Multiples of what a latent patch covers, within the positions the transformer has."""
    transformer = checkpoint.config("transformer")
    multiple = VAE_SCALE * int(transformer.get("patch_size", 2))
    return Grid(multiple, multiple * min(transformer.get("axes_lens", (300, 512, 512))[1:]))


LUMINA2 = Family(
    distribution="flowfactory-lumina2",
    pipelines=("Lumina2Pipeline",),
    encoders=("text_encoder", "tokenizer"),
    encode=encode,
    shape=models.latent_shape,
    sigmas=sigmas,
    velocity=velocity,
    decode=models.decode_scaled,
    encode_media=models.encode_scaled,
    blocks=("Lumina2TransformerBlock",),
    lora_targets=LORA_TARGETS,
    grid=grid,
    guide=guide,
    encode_batch=8,  # every layer's hidden states are kept, at the full length
    not_encoded=("cfg_normalization", "cfg_trunc_ratio"),
    padded=frozenset({"embeds"}),
)


class Lumina2Config(FamilyConfig):
    """Any diffusers Lumina2Pipeline: Lumina Image 2.0 (arXiv:2503.21758)."""

    known_as = ("lumina", "lumina-2", "lumina-image-2", "lumina-image-2.0")
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"Alpha-VLLM/Lumina-Image-2.0": "Apache-2.0"}

    family: ClassVar[Family] = LUMINA2

    max_sequence_length: int = Field(256, ge=1, le=512, description="tokens of a prompt behind the system prompt, together")
    system_prompt: str | None = Field(None, description="what stands before every prompt but negative ones; the pipeline's own")
    cfg_normalization: bool = Field(True, description="keep the norm of each row of the velocity with the prompt")
    cfg_trunc_ratio: float = Field(1.0, ge=0, le=1, description="no guidance behind this share of the steps")

    def check(self, run: RunConfig) -> None:
        """As every family's, and the transformer has a position for each token of the text."""
        super().check(run)
        places = self.checkpoint.config("transformer").get("axes_lens", (300,))[0]
        if self.max_sequence_length >= places:
            told = f"the transformer has positions for {places - 1} tokens of text"
            raise ValueError(f"model.max_sequence_length {self.max_sequence_length}: {told}; write no more")
