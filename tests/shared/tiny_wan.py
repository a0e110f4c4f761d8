"""Tiny random Wan checkpoints of every released kind, built without a network, and media for their prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from flowfactory.data import media
from flowfactory.testing.tiny_checkpoints import t5_text, t5_tokenizer

TEXT, IMAGE, LATENT = 32, 16, 4
BOUNDARY = 0.875
PATCHES = 5  # of a picture by CLIP, with the one that stands for all


def text_to_video(folder: Path, kind: str = "2.1") -> Path:
    """``kind`` is 2.1, a14b (two experts) or 5b (a VAE of twice the scale, and a time a token)."""
    torch.manual_seed(0)
    parts = _shared(kind)
    channels = parts["vae"].config.z_dim
    experts = {"boundary_ratio": BOUNDARY, "transformer_2": _transformer(channels, channels)} if kind == "a14b" else {}
    transformer = _transformer(channels, channels)
    WanPipeline(**parts, **experts, transformer=transformer, expand_timesteps=kind == "5b").save_pretrained(folder)
    return folder


def image_to_video(folder: Path, kind: str = "2.1", last: bool = False) -> Path:
    """``kind`` as above; 2.1 alone sees the picture by CLIP too. ``last``: it is given the last frame too."""
    torch.manual_seed(1)
    parts = _shared(kind)
    channels = parts["vae"].config.z_dim
    seen = channels if kind == "5b" else 4 + 2 * channels
    transformers = {"transformer": _transformer(seen, channels, clip=kind == "2.1", pictures=2 if last else 1)}
    if kind == "a14b":
        transformers |= {"transformer_2": _transformer(seen, channels)}
    eyes: dict[str, Any] = {}
    if kind == "2.1":
        eyes["image_encoder"] = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=IMAGE, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
            )
        ).eval()
        eyes["image_processor"] = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    WanImageToVideoPipeline(
        **parts,
        **transformers,
        **eyes,
        boundary_ratio=BOUNDARY if kind == "a14b" else None,
        expand_timesteps=kind == "5b",
    ).save_pretrained(folder)
    return folder


def frames_to_video(folder: Path, kind: str = "2.1") -> Path:
    """``kind`` is 2.1 or a14b."""
    return image_to_video(folder, kind, last=True)


def video_to_video(folder: Path) -> Path:
    """Wan 2.1, saved as what it is opened as."""
    torch.manual_seed(2)
    transformer = _transformer(LATENT, LATENT)
    WanVideoToVideoPipeline(**_shared("2.1"), transformer=transformer).save_pretrained(folder)
    return folder


def _shared(kind: str) -> dict[str, Any]:
    tokenizer = t5_tokenizer(512)
    return {
        "tokenizer": tokenizer,
        "text_encoder": t5_text(len(tokenizer), TEXT, UMT5EncoderModel, UMT5Config),
        "vae": _vae(kind == "5b"),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0 if kind == "5b" else 3.0
        ),
    }


def _transformer(channels: int, out: int, clip: bool = False, pictures: int = 1) -> Any:
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=out,
        text_dim=TEXT,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        image_dim=IMAGE if clip else None,
        added_kv_proj_dim=24 if clip else None,
        rope_max_seq_len=32,
        pos_embed_seq_len=pictures * PATCHES if clip and pictures > 1 else None,
    ).eval()
    if clip and pictures > 1:
        with torch.no_grad():  # zeros
            transformer.condition_embedder.image_embedder.pos_embed.normal_()
    return transformer


def _vae(large: bool) -> Any:
    """8 pixels to a latent and 4 frames, as the released one; 16 pixels with ``large``."""
    channels = LATENT + 2 if large else LATENT
    options = {"patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16, "is_residual": True}
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=torch.randn(channels).tolist(),
        latents_std=(0.5 + torch.rand(channels)).tolist(),
        **(options if large else {}),
    )
    return vae.eval()


def picture(path: Path, seed: int, size: tuple[int, int] = (20, 28)) -> Path:
    """``path`` with .png: smooth random colours."""
    return media.write_media(_colours(seed, 1, size)[0], path)


def video(path: Path, seed: int, frames: int = 9, size: tuple[int, int] = (24, 32), rate: float = 16) -> Path:
    """``path`` with .mp4: smooth random colours that move; Wan 2.1 draws at this rate."""
    return media.write_media(_colours(seed, frames, size), path, rate)


def _colours(seed: int, frames: int, size: tuple[int, int]) -> torch.Tensor:
    coarse = torch.rand(1, 3, 1 + (frames > 1), 3, 3, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (frames, *size), mode="trilinear")
    return smooth[0].transpose(0, 1)
