"""Every model by its tiny checkpoint, and what a run of it needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import tiny_chroma
import tiny_flux
import tiny_hunyuan_video
import tiny_krea
import tiny_lumina2
import tiny_qwen_image
import tiny_qwen_image_21
import tiny_sana
import tiny_wan
import tiny_z_image

AREAS = {"vae_area": 64 * 32, "condition_area": 64 * 64}
TEXT = {"max_sequence_length": 16}
GRPO = {"name": "grpo", "clip_range": 1e-3}
NFT = {"name": "nft", "kl": 0, "timesteps": {"name": "uniform", "count": 2}}


class Case(NamedTuple):
    """A model by its name, how its tiny checkpoint is made, and what a run of it needs."""

    name: str
    build: Callable[[Path], Path]
    options: Mapping[str, Any] = MappingProxyType({})
    size: tuple[int, ...] = (32, 32)
    guidance: float = 1.0
    images: int = 0
    video: bool = False


CASES = {
    "chroma": Case("chroma", tiny_chroma.chroma, {"max_sequence_length": 24}, guidance=5.0),
    "flux1": Case("flux1", tiny_flux.flux1, TEXT, guidance=3.5),
    "flux1-schnell": Case("flux1", lambda folder: tiny_flux.flux1(folder, dev=False), TEXT),
    "flux1-kontext": Case(
        "flux1-kontext",
        lambda folder: tiny_flux.flux1(folder, kontext=True),
        TEXT | {"auto_resize": False},
        guidance=3.5,
        images=1,
    ),
    "flux2": Case("flux2", tiny_flux.flux2, {"max_sequence_length": 64}, guidance=4.0),
    "flux2-klein": Case("flux2-klein", tiny_flux.klein, TEXT, guidance=4.0),
    "hunyuan-video-1.5": Case("hunyuan-video-1.5", tiny_hunyuan_video.text_to_video, {}, (32, 32, 5), guidance=6.0),
    "hunyuan-video-1.5-i2v": Case(
        "hunyuan-video-1.5-i2v", tiny_hunyuan_video.image_to_video, {}, (32, 32, 5), guidance=6.0, images=1
    ),
    "krea2": Case("krea2", tiny_krea.krea2, {"max_sequence_length": 64}, guidance=4.0),
    "qwen-image": Case("qwen-image", tiny_qwen_image.qwen_image, guidance=4.0),
    "qwen-image-edit": Case("qwen-image-edit", tiny_qwen_image.qwen_image_edit, AREAS, guidance=4.0, images=2),
    "qwen-image-2.1": Case("qwen-image-2.1", tiny_qwen_image_21.qwen_image_21, guidance=4.0),
    "qwen-image-2.1-edit": Case(
        "qwen-image-2.1-edit", tiny_qwen_image_21.qwen_image_21, {"picture_area": 64 * 64}, guidance=4.0, images=2
    ),
    "lumina2": Case("lumina2", tiny_lumina2.lumina2, {"max_sequence_length": 100}, guidance=4.0),
    "sana": Case("sana", tiny_sana.sana, {"max_sequence_length": 30}, guidance=4.5),
    "z-image": Case("z-image", tiny_z_image.z_image, guidance=4.0),
    "wan-t2v": Case("wan-t2v", tiny_wan.text_to_video, {}, (32, 32, 5), guidance=5.0),
    "wan-i2v": Case("wan-i2v", tiny_wan.image_to_video, {}, (32, 32, 5), guidance=5.0, images=1),
    "wan-flf2v": Case("wan-flf2v", tiny_wan.frames_to_video, {}, (32, 32, 5), guidance=5.0, images=2),
    "wan-v2v": Case("wan-v2v", tiny_wan.video_to_video, {}, (32, 32, 5), guidance=5.0, video=True),
}


def prompts(case: Case, folder: Path) -> Path:
    """Two prompts, the second longer, with what the model takes."""
    lines: list[dict[str, Any]] = [{"prompt": "a cat"}, {"prompt": "a photo of a red circle"}]
    for i, line in enumerate(lines):
        if case.images:
            line["images"] = [str(tiny_wan.picture(folder / f"{i}{j}", seed=10 * i + j)) for j in range(case.images)]
        if case.video:
            line["video"] = str(tiny_wan.video(folder / f"{i}", seed=i))
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def sections(case: Case) -> dict[str, Any]:
    height, width, *frames = case.size
    sampling = {"size": [height, width], "guidance": case.guidance}
    return {"sampling": {**sampling, "frames": frames[0]} if frames else sampling}
