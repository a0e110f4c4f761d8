"""The shapes of released models: folders of configs without weights, and random weights and conditions in their place.

A ``tiny`` one has the same classes and the same parts, so small that a CPU draws and learns with it in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from flowfactory import hookimpl
from flowfactory.canvas import Canvas
from flowfactory.models.family_model import FamilyModel
from flowfactory.models.pretrained import Pretrained
from flowfactory.types import Prompt

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Release:
    """A model of diffusers as it was released.

    component: its name here. transformer, vae, scheduler: the class and its options, which ``tiny`` ones are laid over.
    encoders: the class of each, which need not be there. entry: the shapes of an encoded prompt's tensors, and tiny ones.
    sampling: what it is drawn with.
    """

    component: str
    pipeline: str
    transformer: tuple[str, Options]
    vae: tuple[str, Options]
    scheduler: tuple[str, Options]
    encoders: Mapping[str, str]
    entry: Mapping[str, tuple[Sequence[int], Sequence[int]]]
    tiny: tuple[Options, Options]
    sampling: Options


KL_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
FLUX_VAE = {**KL_VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159}
TINY_KL_VAE = {
    "block_out_channels": (4, 4, 4, 4),
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "latent_channels": 16,
}
TINY_VIDEO_VAE = {"base_dim": 4, "num_res_blocks": 1}
FLOW_MATCH, UNIPC = "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5}
WAN_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
WAN_ENCODERS = {"text_encoder": "UMT5EncoderModel", "tokenizer": "T5TokenizerFast"}
WAN_ENTRY = {"embeds": ((512, 4096), (6, 16))}
TINY_WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 2,
}
PICTURE = {"size": [512, 512], "steps": 10}
VIDEO = {"size": [480, 832], "frames": 33, "steps": 10, "guidance": 5.0}


def _wan(**options: Any) -> Release:
    return Release(
        component="wan-t2v",
        pipeline="WanPipeline",
        transformer=("WanTransformer3DModel", options),
        vae=("AutoencoderKLWan", {}),
        scheduler=(UNIPC, WAN_FLOW),
        encoders=WAN_ENCODERS,
        entry=WAN_ENTRY,
        tiny=(TINY_WAN, TINY_VIDEO_VAE),
        sampling=VIDEO,
    )


RELEASES = {
    "FLUX.1-dev": Release(
        component="flux1",
        pipeline="FluxPipeline",
        transformer=("FluxTransformer2DModel", {"guidance_embeds": True}),
        vae=("AutoencoderKL", FLUX_VAE),
        scheduler=(FLOW_MATCH, {**DYNAMIC, "max_shift": 1.15, "shift": 3.0}),
        encoders={
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "T5EncoderModel",
            "tokenizer": "CLIPTokenizer",
            "tokenizer_2": "T5TokenizerFast",
        },
        entry={"embeds": ((512, 4096), (6, 16)), "pooled": ((768,), (16,))},
        tiny=(
            {
                "num_layers": 1,
                "num_single_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "axes_dims_rope": (4, 6, 6),
                "joint_attention_dim": 16,
                "pooled_projection_dim": 16,
            },
            TINY_KL_VAE,
        ),
        sampling={**PICTURE, "guidance": 3.5},
    ),
    "Qwen-Image": Release(
        component="qwen-image",
        pipeline="QwenImagePipeline",
        transformer=("QwenImageTransformer2DModel", {}),
        vae=("AutoencoderKLQwenImage", {}),
        scheduler=(FLOW_MATCH, {**DYNAMIC, "max_shift": 0.9, "shift_terminal": 0.02, "max_image_seq_len": 8192}),
        encoders={"text_encoder": "Qwen2_5_VLForConditionalGeneration", "tokenizer": "Qwen2Tokenizer"},
        entry={"embeds": ((64, 3584), (6, 16))},
        tiny=(
            {
                "num_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "joint_attention_dim": 16,
                "axes_dims_rope": (4, 6, 6),
            },
            TINY_VIDEO_VAE,
        ),
        sampling={**PICTURE, "guidance": 4.0},
    ),
    "SD3.5-medium": Release(
        component="sd3",
        pipeline="StableDiffusion3Pipeline",
        transformer=(
            "SD3Transformer2DModel",
            {
                "num_layers": 24,
                "attention_head_dim": 64,
                "num_attention_heads": 24,
                "caption_projection_dim": 1536,
                "pos_embed_max_size": 384,
                "dual_attention_layers": tuple(range(13)),
                "qk_norm": "rms_norm",
            },
        ),
        vae=("AutoencoderKL", {**KL_VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
        scheduler=(FLOW_MATCH, {"shift": 3.0}),
        encoders={
            "text_encoder": "CLIPTextModelWithProjection",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "text_encoder_3": "T5EncoderModel",
            "tokenizer": "CLIPTokenizer",
            "tokenizer_2": "CLIPTokenizer",
            "tokenizer_3": "T5TokenizerFast",
        },
        entry={"embeds": ((333, 4096), (6, 16)), "pooled": ((2048,), (16,))},
        tiny=(
            {
                "num_layers": 2,
                "attention_head_dim": 8,
                "num_attention_heads": 2,
                "caption_projection_dim": 16,
                "joint_attention_dim": 16,
                "pooled_projection_dim": 16,
                "pos_embed_max_size": 16,
                "dual_attention_layers": (0,),
            },
            TINY_KL_VAE,
        ),
        sampling={**PICTURE, "guidance": 4.5},
    ),
    "Z-Image": Release(
        component="z-image",
        pipeline="ZImagePipeline",
        transformer=("ZImageTransformer2DModel", {}),
        vae=("AutoencoderKL", FLUX_VAE),
        scheduler=(FLOW_MATCH, {"shift": 3.0}),
        encoders={"text_encoder": "Qwen3Model", "tokenizer": "Qwen2Tokenizer"},
        entry={"embeds": ((64, 2560), (6, 16))},
        tiny=(
            {
                "dim": 32,
                "n_layers": 2,
                "n_refiner_layers": 1,
                "n_heads": 2,
                "n_kv_heads": 2,
                "cap_feat_dim": 16,
                "axes_dims": (4, 6, 6),
                "axes_lens": (64, 32, 32),
            },
            TINY_KL_VAE,
        ),
        sampling=PICTURE,
    ),
    "Wan2.1-1.3B": _wan(num_attention_heads=12, ffn_dim=8960, num_layers=30),
    "Wan2.1-14B": _wan(),
}


def write_configs(folder: Path, release: Release, tiny: bool = False) -> Path:
    """``folder`` as a pipeline's, with the configs of the transformer, the VAE and the scheduler; no encoders."""
    index: dict[str, Any] = {"_class_name": release.pipeline, "_diffusers_version": "0.35.0"}
    index |= {name: ["transformers", kind] for name, kind in release.encoders.items()}
    small = dict(zip(("transformer", "vae"), release.tiny, strict=True)) if tiny else {}
    for name in ("transformer", "vae", "scheduler"):
        kind, options = getattr(release, name)
        with init_empty_weights():
            part = getattr(import_module("diffusers"), kind)(**{**options, **small.get(name, {})})
        part.save_config(folder / name)
        index[name] = ["diffusers", kind]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@contextmanager
def random_weights(release: Release, device: torch.device, tiny: bool = False, seed: int = 0) -> Iterator[None]:
    """Within it checkpoints are opened with random weights, made on ``device``, and prompts get random conditions.

    Weights are normal with the spread that keeps a layer's outputs as large as its inputs; nothing is read and nothing encoded.
    """
    source = torch.Generator(device).manual_seed(seed)
    whole = {"fetch": Pretrained.fetch, "load": Pretrained.load}

    def fetch(checkpoint: Pretrained, names: Sequence[str]) -> Path:
        return Path(checkpoint.path)

    def load(checkpoint: Pretrained, kind: Any, folder: Path, name: str, dtype: torch.dtype, stays: bool = False) -> Any:
        if not issubclass(kind, nn.Module):
            return whole["load"](checkpoint, kind, folder, name, dtype)
        with init_empty_weights():  # tables of positions and the like are numbers that a class makes itself
            module: nn.Module = kind.from_config(kind.load_config(folder / name))
        return fill(module, dtype, device, source).to(device)

    @hookimpl
    def encode(model: FamilyModel, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Mapping[str, Tensor]]:
        of_prompts = torch.Generator().manual_seed(seed)
        for _ in prompts:
            sizes = {name: shapes[tiny] for name, shapes in release.entry.items()}
            dtype = getattr(model, "_dtype", torch.float32)
            yield {name: torch.randn(*shape, generator=of_prompts).to(dtype) for name, shape in sizes.items()}

    before = FamilyModel.encode
    Pretrained.fetch, Pretrained.load, FamilyModel.encode = fetch, load, encode  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        Pretrained.fetch, Pretrained.load, FamilyModel.encode = (*whole.values(), before)  # type: ignore[method-assign]


def fill(module: nn.Module, dtype: torch.dtype, device: torch.device, source: torch.Generator) -> nn.Module:
    """``module``, whose weights are on "meta", with random ones on ``device``, in ``dtype`` or what its class keeps."""
    kept = getattr(module, "_keep_in_fp32_modules", None) or ()
    for name, parameter in [*module.named_parameters()]:
        exact = any(part in kept for part in name.split("."))
        made = torch.empty(parameter.shape, device=device, dtype=torch.float32 if exact else dtype)
        if parameter.dim() > 1:
            made.normal_(0, (parameter[0].numel()) ** -0.5, generator=source)
        else:  # scales of norms, and what is added
            made.fill_(1.0 if name.endswith("weight") else 0.0)
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._parameters[leaf] = nn.Parameter(made, requires_grad=False)
    return module
