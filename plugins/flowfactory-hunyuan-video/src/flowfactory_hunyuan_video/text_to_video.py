"""HunyuanVideo 1.5 over the parts of a HunyuanVideo15Pipeline, and what it shares with image to video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from flowfactory import Canvas, Conditions, Prompt, models
from flowfactory.models import Entry, Family, FamilyConfig, Grid, Parts, Pretrained

TEXT_LENGTH, GLYPHS_LENGTH = 1000, 256  # as the pipeline has them
FRAME_RATE = 24
LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)


def unread_of_the_text(parts: Parts) -> tuple[str, ...]:
    """What makes the text that leaves the last block, which nothing reads."""
    last = f"transformer.transformer_blocks.{parts.pipeline.transformer.config.num_layers - 1}"
    queries = (f"{last}.attn.add_q_proj", f"{last}.attn.norm_added_q")
    return (*queries, f"{last}.attn.to_add_out", f"{last}.ff_context")


def unread_weights(parts: Parts) -> tuple[str, ...]:
    """Those of the text, and what embeds pictures, of which there are none."""
    return (*unread_of_the_text(parts), "transformer.image_embedder.")


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
    """embeds [L_i, D] of each prompt and glyphs [G_i, E] of what it has in quotes, none of most, without padding."""
    embeds, own, glyphs, drawn = parts.pipeline.encode_prompt(
        [prompt.text for prompt in prompts], device=parts.device, batch_size=len(prompts)
    )
    for row, mask, letters, quoted in zip(embeds, own.bool(), glyphs, drawn.bool(), strict=True):
        yield {"embeds": row[mask], "glyphs": letters[quoted]}


def shape(parts: Parts, canvas: Canvas) -> tuple[int, ...]:
    """[C, F, H, W] of the latents."""
    pipeline = parts.pipeline
    scale, stride = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
    frames = (canvas.frames - 1) // stride + 1
    return (pipeline.num_channels_latents, frames, canvas.height // scale, canvas.width // scale)


def sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
    """[steps + 1], with the shift of the checkpoint's scheduler."""
    return models.scheduler_sigmas(parts, steps, sigmas=models.even_sigmas(steps))


def forward(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, given: Tensor, picture: Tensor) -> Tensor:
    """[B, C, F, H, W]; ``given`` [B, C + 1, F, H, W] is joined to the latents' channels, ``picture`` [B, P, E] to the text."""
    embeds, own = conditions.pad("embeds")
    glyphs, drawn = conditions.pad("glyphs")
    found: Tensor = parts.pipeline.transformer(
        hidden_states=torch.cat([latents, given], dim=1).to(embeds.dtype),
        image_embeds=picture.to(embeds.dtype),
        timestep=(sigma * parts.pipeline.scheduler.config.num_train_timesteps).to(embeds.dtype),  # rounded as in the pipeline
        encoder_hidden_states=embeds,
        encoder_attention_mask=own,
        # one more, so that there is one where nothing is quoted
        encoder_hidden_states_2=functional.pad(glyphs, (0, 0, 0, 1)),
        encoder_attention_mask_2=functional.pad(drawn, (0, 1)),
        return_dict=False,
    )[0]
    return found


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """[B, C, F, H, W]. A picture of zeros is masked, however many tokens it has."""
    nothing = torch.zeros_like(latents[:, :1]).repeat(1, latents.shape[1] + 1, 1, 1, 1)
    return forward(
        parts, latents, sigma, conditions, nothing, latents.new_zeros(len(latents), 1, parts.pipeline.vision_states_dim)
    )


def decode(parts: Parts, latents: Tensor) -> Tensor:
    """Videos [B, F, 3, H, W], one by one: the mask of the VAE's attention is none for more."""
    return torch.cat([models.decode_scaled(parts, row) for row in latents.chunk(len(latents))]).transpose(1, 2)


def encode_media(parts: Parts, media: Tensor) -> Tensor:
    """Latents [B, C, F, H, W] of videos [B, F, 3, H, W] in [0, 1], one by one as well."""
    return torch.cat([models.encode_scaled(parts, row) for row in media.transpose(1, 2).chunk(len(media))])


def frame_rate(parts: Parts) -> float:
    """Frames a second, of every checkpoint."""
    return FRAME_RATE


def grid(checkpoint: Pretrained) -> Grid:
    """Multiples of what a latent patch covers."""
    vae, transformer = checkpoint.config("vae"), checkpoint.config("transformer")
    multiple = vae.get("spatial_compression_ratio", 16) * transformer.get("patch_size", 1)
    return Grid(int(multiple), stride=vae.get("temporal_compression_ratio", 4))


HUNYUAN_VIDEO = Family(
    distribution="flowfactory-hunyuan-video",
    pipelines=("HunyuanVideo15Pipeline",),
    encoders=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    encode=encode,
    shape=shape,
    sigmas=sigmas,
    velocity=velocity,
    decode=decode,
    encode_media=encode_media,
    blocks=("HunyuanVideo15TransformerBlock",),
    lora_targets=LORA_TARGETS,
    grid=grid,
    unread=unread_weights,
    unopened=("guider",),
    encode_batch=4,  # every layer's hidden states are kept, at the full length
    padded=frozenset({"embeds", "glyphs"}),
    chat_template=True,
    frame_rate=frame_rate,
)


class HunyuanVideoConfig(FamilyConfig):
    """Any diffusers HunyuanVideo15Pipeline: text to video with HunyuanVideo 1.5 (arXiv:2511.18870)."""

    known_as = ("hunyuan-video", "hunyuanvideo", "hunyuanvideo-1.5", "hunyuan", "hunyuan-video-1.5-t2v")

    family: ClassVar[Family] = HUNYUAN_VIDEO
    checkpoint_licences: ClassVar[Mapping[str, str]] = {
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v": "see its page"
    }

    def encoded_tokens(self) -> int | None:
        """Of the text; what is quoted has at most 256 more."""
        return TEXT_LENGTH

    def check_checkpoint(self) -> None:
        """ValueError: as for every family; or the transformer also asks for the time that a step leads to."""
        super().check_checkpoint()
        if self.checkpoint.config("transformer").get("use_meanflow"):
            told = f"the transformer of {self.path} is for a few steps, whose length it takes too"
            raise ValueError(f"model.path: {told}; take one that is not step-distilled")
