"""HPS v2 and v2.1 (arXiv:2306.09341): a CLIP tuned on which pictures people prefer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from flowfactory import CheckpointPath, UserError
from flowfactory.rewards import to_pixels
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.dual_encoder import CLIP_H, DualEncoder, find_tokenizer, load_clip_tokenizer
from flowfactory_rewards.reward_model import RewardModel, RewardModelConfig, Scorer
from flowfactory_rewards.weights import (
    AGAIN,
    from_state_dict,
    load_pretrained,
    read_tensors,
    refuse_other_names,
    strip_prefix,
)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTHS = {"vision": 80, "text": 64}
"""Of the heads of ViT-H-14, which the names and shapes of weights do not tell."""


class HpsV2Config(RewardModelConfig):
    """How people would like the picture for the prompt (arXiv:2306.09341): the cosine of a tuned CLIP-H, in [-1, 1].

    Higher is better; released weights give about 0.2 to 0.35. Papers show 100 times this. Scores of v2 and v2.1 do not compare.
    """

    known_as = ("hps", "hps-v2", "hpsv2.1")

    checkpoint_licences: ClassVar[Mapping[str, str]] = {
        "xswu/HPSv2": "Apache-2.0",
        CLIP_H: "MIT",
    }

    path: CheckpointPath = Field("xswu/HPSv2", description="a folder or a hub id with the weights")
    file: str | None = Field(
        "HPS_v2.1_compressed.pt",
        description="the released file there, in the names of open_clip (v2: HPS_v2_compressed.pt); "
        "null: the path holds a CLIPModel of transformers, as adams-story/HPSv2-hf does with v2",
    )
    tokenizer: CheckpointPath | None = Field(
        None,
        description="a folder or a hub id with the tokenizer; when left out, the folder of the weights where it is in it, "
        "and else that of the CLIP-H that was tuned",
    )

    def lacking(self) -> str | None:
        return missing_module("hpsv2", "transformers")

    @property
    def files(self) -> tuple[tuple[str, str | None], ...]:
        return ((self.path, self.file),)

    def build(self, label: str) -> RewardModel:
        require(self)
        return RewardModel(label, self, _load_scorer, self.path, self.file, self.tokenizer or find_tokenizer(self.path, CLIP_H))


def _load_scorer(path: str, file: str | None, tokenizer: str, device: torch.device, dtype: torch.dtype) -> Scorer:
    from transformers import CLIPConfig, CLIPModel

    if file is None:
        model = load_pretrained(CLIPModel, path, device, dtype)
    else:
        config, state = convert_open_clip(read_tensors(path, file, "state_dict"), f"{file} in {path}")
        model = from_state_dict(CLIPModel, CLIPConfig(**config), state, f"{file} in {path}", device, dtype)
    size: int = model.config.vision_config.image_size
    return DualEncoder(model, lambda pictures: letterbox(pictures, size), load_clip_tokenizer(tokenizer, model)).cosine


def letterbox(pictures: Tensor, size: int) -> Tensor:
    """What the model sees of pictures [n, 3, H, W] in [0, 1]: all of them, at [n, 3, size, size], black beside; normalised.

    The longer side becomes ``size``, bicubic with antialiasing on the 256 levels of a file, as HPSv2 does it.
    """
    seen = torch.from_numpy(to_pixels(pictures)).movedim(-1, -3).float() / 255
    scale = size / max(seen.shape[-2:])
    height, width = (round(side * scale) for side in seen.shape[-2:])
    if scale != 1:
        seen = functional.interpolate(seen, (height, width), mode="bicubic", antialias=True)
    left, top = (size - width) // 2, (size - height) // 2
    seen = functional.pad(seen, (left, size - width - left, top, size - height - top))
    return (seen - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def convert_open_clip(
    state: Mapping[str, Tensor], source: str, heads: Mapping[str, int] = HEAD_WIDTHS
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The options of a CLIPConfig and the weights of its CLIPModel, of a CLIP in open_clip's names.

    ``heads``: the width of one head of each tower. UserError, which names ``source``: these are not such weights.
    """
    if lacking := sorted(NEEDED - state.keys()):
        raise UserError(f"{source} has no weight {lacking[0]}, which a CLIP of open_clip has; {AGAIN}")
    places = state["visual.positional_embedding"].shape[0] - 1
    patch = state["visual.conv1.weight"].shape[-1]
    vision = _tower_config(state, "visual.transformer.", heads["vision"]) | {"patch_size": patch}
    text = _tower_config(state, "transformer.", heads["text"])
    config = {
        "projection_dim": state["text_projection"].shape[1],
        "vision_config": vision | {"image_size": patch * round(places**0.5)},
        "text_config": text
        | {
            "vocab_size": state["token_embedding.weight"].shape[0],
            "max_position_embeddings": state["positional_embedding"].shape[0],
            "eos_token_id": 2,  # with which transformers pools at the highest id, as open_clip does
        },
    }
    renamed = {name: _rename_weight(name, weight) for name, weight in state.items()}
    refuse_other_names([name for name, pairs in renamed.items() if not pairs], [], UNREAD, source)
    return config, dict(pair for pairs in renamed.values() for pair in pairs)


def _tower_config(state: Mapping[str, Tensor], prefix: str, head: int) -> dict[str, Any]:
    blocks = strip_prefix(state, f"{prefix}resblocks.")
    inner, width = blocks["0.mlp.c_fc.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": len({name.split(".")[0] for name in blocks}),
        "num_attention_heads": width // head,
        "hidden_act": "gelu",
    }


UNREAD = (r"attn_mask", r"logit_bias", r"input_resolution", r"context_length", r"vocab_size")
"""What some releases of open_clip have besides, which no cosine depends on."""
NEEDED = {
    *("visual.conv1.weight", "visual.positional_embedding", "visual.transformer.resblocks.0.mlp.c_fc.weight"),
    *("token_embedding.weight", "positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight", "text_projection"),
}
"""Weights whose shapes tell the options of the model."""
WEIGHT_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
NORM_NAMES = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _rename_weight(name: str, weight: Tensor) -> list[tuple[str, Tensor]]:
    """The weight ``name`` of open_clip under transformers' names; none where transformers has no such weight."""
    if name in WEIGHT_NAMES:
        # what open_clip multiplies from the left, transformers keeps as a linear layer
        return [(WEIGHT_NAMES[name], weight.T.contiguous() if name in ("visual.proj", "text_projection") else weight)]
    part, _, kind = name.rpartition(".")
    if part in NORM_NAMES:
        return [(f"{NORM_NAMES[part]}.{kind}", weight)]
    block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
    if not block:
        return []
    prefix = f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}."
    if joint := re.fullmatch(r"attn\.in_proj_(weight|bias)", block[3]):
        thirds = zip(("q_proj", "k_proj", "v_proj"), weight.chunk(3), strict=True)
        return [(f"{prefix}self_attn.{third}.{joint[1]}", piece.contiguous()) for third, piece in thirds]
    part, _, kind = block[3].rpartition(".")
    return [(f"{prefix}{BLOCK_NAMES[part]}.{kind}", weight)] if part in BLOCK_NAMES else []
