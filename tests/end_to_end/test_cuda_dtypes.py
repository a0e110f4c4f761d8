"""The dtypes that a bf16 run of each family has on CUDA, by a stand-in for CUDA's autocast: what is rounded and what not."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import family_cases
import pytest
import torch
from families import open_bench
from torch import Tensor, nn

from flowfactory.config.loading import validate
from flowfactory.policy import blocks
from flowfactory.runs.estimate.stand_ins import cuda_autocast
from flowfactory.testing import Bench
from flowfactory.testing.two_parameter import settings

HALF, WHOLE = torch.bfloat16, torch.float32
LORA = {"lora": {"rank": 2, "alpha": 4}}
NAMES = (
    *("chroma", "flux1", "flux2", "hunyuan-video-1.5", "krea2", "lumina2", "qwen-image", "qwen-image-2.1", "sana"),
    *("z-image", "wan-t2v"),
)
CASES = [*((name, LORA) for name in NAMES), ("flux1", "full"), ("z-image", "full")]
# its pad tokens are weights, which are float32 where they train, and what is joined with them becomes so
WIDENED = [("z-image", "full")]
# what embeds its pictures ends in a layer norm, and the text is joined with it
WIDENED_TEXT = ["hunyuan-video-1.5"]
TIME_STEPS = {
    "chroma": "time_text_embed.time_proj",
    "flux1": "time_text_embed.time_proj",
    "flux2": "time_guidance_embed.time_proj",
} | {
    "hunyuan-video-1.5": "time_embed.time_proj",
    "qwen-image": "time_text_embed.time_proj",
    "qwen-image-2.1": "time_text_embed.time_proj",
    "wan-t2v": "condition_embedder.timesteps_proj",
}
EMBEDDED = {
    "chroma": "distilled_guidance_layer",
    "flux1": "time_text_embed",
    "flux2": "time_guidance_embed",
    "hunyuan-video-1.5": "time_embed",
    "krea2": "time_embed",
    "qwen-image-2.1": "time_text_embed",
    "qwen-image": "time_text_embed",
    "lumina2": "time_caption_embed.timestep_embedder",
    "sana": "time_embed.emb.timestep_embedder",
    "z-image": "t_embedder",
    "wan-t2v": "condition_embedder.time_embedder",
}


def drawn(made: Bench) -> dict[str, set[torch.dtype]]:
    """The dtypes of what the parts of the transformer return while a sample is drawn, by their names."""
    (module,) = made.policy.modules.values()
    within = {id(part) for part in blocks.find_blocks(module, made.trainable.blocks)}
    seen: dict[str, set[torch.dtype]] = defaultdict(set)
    for name, part in module.named_modules():
        label = "block" if id(part) in within else "layer norm" if isinstance(part, nn.LayerNorm) else name or "whole"

        def note(_: nn.Module, given: Any, found: Any, label: str = label) -> None:
            every = found if isinstance(found, tuple | list) else [found]
            seen[label] |= {each.dtype for each in every if isinstance(each, Tensor) and each.is_floating_point()}

        part.register_forward_hook(note)
    with cuda_autocast():
        latents = made.draw(1).latents
    seen["latents"].add(latents.dtype)
    return seen


@pytest.mark.parametrize(("name", "train"), CASES)
def test_a_family_in_bf16_is_rounded_where_cuda_rounds_it(name: str, train: Any, tmp_path: Path) -> None:
    case = family_cases.CASES[name]
    model = {"name": case.name, "path": str(case.build(tmp_path / "model")), "train": train, **case.options}
    sampling = {**family_cases.sections(case)["sampling"], "groups": 2, "steps": 2, "guidance": 1.0}
    config = validate(settings(tmp_path, {"name": "nft"}) | {"model": model, "sampling": sampling}).model
    seen = drawn(open_bench(config, tmp_path / "cache", ["a cat"], case.size, 2, precision=HALF))
    text = {WHOLE} if name in WIDENED_TEXT else set()
    assert seen["block"] == ({WHOLE} if (name, train) in WIDENED else {HALF} | text), "the residual stream"
    assert name == "krea2" or seen["layer norm"] == {WHOLE}, "as on CUDA, and not on a CPU"
    assert seen[EMBEDDED[name]] == {HALF}
    assert seen["latents"] == {WHOLE}
    if name in TIME_STEPS:
        assert seen[TIME_STEPS[name]] == {WHOLE}, "sines of times in bf16 would be those of other times"
    if name != "z-image":  # which returns a list
        assert seen["whole"] == {HALF}
