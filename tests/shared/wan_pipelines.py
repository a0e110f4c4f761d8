"""What diffusers' own Wan pipelines draw, by Euler steps along the sigmas that their schedulers have."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanPipeline, WanVideoToVideoPipeline
from torch import Tensor

from flowfactory import Prompt, flow
from flowfactory.data.pictures import read_picture
from flowfactory.data.videos import read_video
from flowfactory.testing import Bench
from flowfactory_wan.wan_flf2v import WanFLF2VConfig
from flowfactory_wan.wan_i2v import WanI2VConfig
from flowfactory_wan.wan_t2v import WanT2VConfig
from flowfactory_wan.wan_v2v import WanV2VConfig

CONFIGS: dict[str, Any] = {"t2v": WanT2VConfig, "i2v": WanI2VConfig, "flf2v": WanFLF2VConfig, "v2v": WanV2VConfig}
PIPELINES: dict[str, Any] = {"t2v": WanPipeline, "v2v": WanVideoToVideoPipeline}
PIPELINES |= dict.fromkeys(("i2v", "flf2v"), WanImageToVideoPipeline)
SIZES = {"2.1": (32, 48, 5), "a14b": (32, 48, 5), "5b": (64, 96, 5)}
LATENTS = {"2.1": (4, 2, 4, 6), "a14b": (4, 2, 4, 6), "5b": (6, 2, 4, 6)}
EVERY = [("t2v", "2.1"), ("t2v", "a14b"), ("t2v", "5b"), ("i2v", "2.1"), ("i2v", "a14b"), ("i2v", "5b"), ("v2v", "2.1")]
EVERY += [("flf2v", "2.1"), ("flf2v", "a14b")]


class Along(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Euler steps along a shifted schedule; timesteps are not rounded."""

    flow_shift: float

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **_: Any) -> None:
        super().set_timesteps(sigmas=schedule(num_inference_steps, self.flow_shift)[:-1], device=device)


def schedule(steps: int, shift: float) -> list[float]:
    """Sigmas [steps + 1], by hand."""
    even = np.linspace(1, 1 / 1000, steps + 1)[:-1]
    return [*(shift * even / (1 + (shift - 1) * even)).tolist(), 0.0]


def open_pipeline(task: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The whole checkpoint as diffusers runs it, but for the solver."""
    pipeline = PIPELINES[task].from_pretrained(folder, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    shift = pipeline.scheduler.config.flow_shift
    pipeline.scheduler = Along(shift=1.0)
    pipeline.scheduler.flow_shift = shift
    _remember(pipeline)
    return pipeline


def _remember(pipeline: Any) -> None:
    """Texts are encoded once: 512 tokens take longer than the rest of a tiny pipeline."""
    encode, known = pipeline._get_t5_prompt_embeds, dict[str, Tensor]()

    def embeds(prompt: list[str], **options: Any) -> Tensor:
        known.update({text: encode(prompt=text, **options) for text in prompt if text not in known})
        return torch.cat([known[text] for text in prompt])

    pipeline._get_t5_prompt_embeds = embeds


def draw_reference(pipeline: Any, made: Bench, output: str = "latent", **options: Any) -> Tensor:
    """Latents [B, C, F, H, W], or with ``output`` "pt" videos [B, F, 3, H, W], of the plan, from the plan's noise.

    A sample at a time: a pipeline takes one picture.
    """
    stride, scale = pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial
    height, width, frames = made.plan.canvas
    shape = (pipeline.vae.config.z_dim, (frames - 1) // stride + 1, height // scale, width // scale)
    found = []
    for prompt, noise in zip(made.batch.prompts, flow.noise(made.plan, shape).split(1), strict=True):
        given = {
            "prompt": [prompt.text],
            "negative_prompt": [prompt.negative or ""],
            "height": height,
            "width": width,
            "num_inference_steps": made.plan.steps,
            "guidance_scale": made.plan.guidance,
            "output_type": output,
            **_media(prompt, frames, noise),
            **options,
        }
        with patch(f"{type(pipeline).__module__}.randn_tensor", lambda *_, noise=noise, **__: noise):
            found.append(pipeline(**given).frames)
    return torch.cat(found)


def _media(prompt: Prompt, frames: int, noise: Tensor) -> dict[str, Any]:
    if prompt.video is not None:
        return {"video": read_video(prompt.video, frames)}
    images = dict(zip(("image", "last_image"), map(read_picture, prompt.images), strict=False))
    return {**images, "num_frames": frames, "latents": noise}
