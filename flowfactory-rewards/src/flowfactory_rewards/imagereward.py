"""ImageReward (arXiv:2304.05977): BLIP that reads prompt and picture together, tuned on how people rank pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from flowfactory import CheckpointPath, UserError
from flowfactory.models import check_vocabulary, load_tokenizer
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.reward_model import RewardModel, RewardModelConfig, Scorer, to_pil
from flowfactory_rewards.weights import (
    BUFFERS,
    LINEAR_PREDICTOR,
    build_linear_layers,
    from_state_dict,
    read_tensors,
    refuse_other_names,
    strip_prefix,
)

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the released model's raw scores, which leave the reward with mean 0 and variance 1 on its data."""
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
TOKENS = 35
HEAD_WIDTH = 64
"""Of the attention of ViT-L and of BERT, which the names and shapes of weights do not tell."""


class ImageRewardConfig(RewardModelConfig):
    """How people would rank the picture for the prompt (arXiv:2304.05977), about -2.3 to 2; higher is better.

    On the authors' data the mean is 0 and the variance 1.
    """

    known_as = ("image-reward",)

    checkpoint_licences: ClassVar[Mapping[str, str]] = {
        "zai-org/ImageReward": "Apache-2.0",
        "google-bert/bert-base-uncased": "Apache-2.0",
    }

    path: CheckpointPath = Field("zai-org/ImageReward", description="a folder or a hub id with the released file")
    file: str = Field("ImageReward.pt", description="the released file there")
    tokenizer: CheckpointPath = Field("google-bert/bert-base-uncased", description="a folder or a hub id with BERT's tokenizer")

    def lacking(self) -> str | None:
        return missing_module("imagereward", "transformers")

    @property
    def files(self) -> tuple[tuple[str, str | None], ...]:
        return ((self.path, self.file),)

    def build(self, label: str) -> RewardModel:
        require(self)
        return RewardModel(label, self, _load_scorer, self.path, self.file, self.tokenizer)


def _load_scorer(path: str, file: str, tokenizer: str, device: torch.device, dtype: torch.dtype) -> Scorer:
    from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    source, words_source = f"{file} in {path}", f"the tokenizer in {tokenizer}"
    words = load_tokenizer(BertTokenizer, tokenizer, words_source)  # before the weights, which take longer
    config, state = convert_blip(read_tensors(path, file), source)
    vision = from_state_dict(BlipVisionModel, BlipVisionConfig(**config["vision"]), state["vision"], source, device, dtype)
    reader = BlipTextConfig(**config["text"])
    unread = (*BUFFERS, r"pooler\..*")
    text = from_state_dict(BlipTextModel, reader, state["text"], source, device, dtype, unread, add_pooling_layer=False)
    rating = nn.Sequential(*build_linear_layers(state["head"], LINEAR_PREDICTOR, reader.hidden_size, source)).to(device)
    words.add_special_tokens({"bos_token": "[DEC]"})
    words.add_tokens(["[ENC]"], special_tokens=True)
    check_vocabulary(words, reader.vocab_size, words_source)
    size = config["vision"]["image_size"]

    def score(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        seen = vision(pixel_values=preprocess(pictures, size).to(device, dtype)).last_hidden_state
        told = words(list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").to(device)
        read = text(input_ids=told.input_ids, attention_mask=told.attention_mask, encoder_hidden_states=seen)
        found: Tensor = (rating(read.last_hidden_state[:, 0].float())[:, 0] - MEAN) / STD
        return found

    return score


def preprocess(pictures: Tensor, size: int) -> Tensor:
    """What the model sees of pictures [n, 3, H, W] in [0, 1]: their middle, [n, 3, size, size], normalised.

    The shorter side becomes ``size``, bicubic as Pillow does it, and the middle is where torchvision sees it.
    """
    seen = []
    for picture in to_pil(pictures):
        shorter = min(picture.size)
        width, height = (int(size * side / shorter) for side in picture.size)
        resized = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        seen.append(np.asarray(resized.crop((left, top, left + size, top + size))))
    values = torch.from_numpy(np.stack(seen)).movedim(-1, -3).float() / 255
    return (values - torch.tensor(PIXEL_MEAN)[:, None, None]) / torch.tensor(PIXEL_STD)[:, None, None]


def convert_blip(
    state: Mapping[str, Tensor], source: str, head_width: int = HEAD_WIDTH
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Tensor]]]:
    """The options of a BlipVisionConfig and a BlipTextConfig, and the weights of both and of the head, of ImageReward's names.

    Under ``vision``, ``text`` and ``head``. What the reward does not use, UNREAD, is left out.
    UserError, which names ``source``: these are not such weights.
    """
    vision = {_rename_vision(name): weight for name, weight in strip_prefix(state, "blip.visual_encoder.").items()}
    text = strip_prefix(state, "blip.text_encoder.")
    if lacking := [name for name in NEEDED_VISION if name not in vision]:
        raise UserError(f"{source} has no weight that becomes {lacking[0]}: it is not what ImageReward was released as")
    if lacking := [name for name in NEEDED_TEXT if name not in text]:
        raise UserError(f"{source} has no weight blip.text_encoder.{lacking[0]}: it is not what ImageReward was released as")
    read = [r"blip\.(visual|text)_encoder\..*", r"mlp\.layers\..*"]
    refuse_other_names(state, read, UNREAD, source)
    width, _, patch, _ = vision["embeddings.patch_embedding.weight"].shape
    patches = vision["embeddings.position_embedding"].shape[1] - 1
    vocabulary, text_width = text["embeddings.word_embeddings.weight"].shape
    config = {
        "vision": {
            "hidden_size": width,
            "intermediate_size": vision["encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": _count_layers(strip_prefix(vision, "encoder.layers.")),
            "num_attention_heads": width // head_width,
            "patch_size": patch,
            "image_size": patch * round(patches**0.5),
            "layer_norm_eps": 1e-6,
        },
        "text": {
            "vocab_size": vocabulary,
            "hidden_size": text_width,
            "encoder_hidden_size": width,
            "intermediate_size": text["encoder.layer.0.intermediate.dense.weight"].shape[0],
            "num_hidden_layers": _count_layers(strip_prefix(text, "encoder.layer.")),
            "num_attention_heads": text_width // head_width,
            "max_position_embeddings": text["embeddings.position_embeddings.weight"].shape[0],
            "layer_norm_eps": 1e-12,
        },
    }
    return config, {"vision": vision, "text": text, "head": strip_prefix(state, "mlp.layers.")}


UNREAD = (r"blip\.(?!(visual|text)_encoder\.).*",)
"""What BLIP is pretrained with besides its two encoders, such as projections, a decoder and momentum copies."""
NEEDED_VISION = ("embeddings.patch_embedding.weight", "embeddings.position_embedding", "encoder.layers.0.mlp.fc1.weight")
NEEDED_TEXT = (
    "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight",
    "encoder.layer.0.intermediate.dense.weight",
    "encoder.layer.0.crossattention.self.key.weight",
)
"""Weights whose shapes tell the options of the models."""


def _count_layers(layers: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[0] for name in layers})


VISION_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm(1|2)\.", r".layer_norm\1."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
)


def _rename_vision(name: str) -> str:
    for pattern, named in VISION_NAMES:
        name = re.sub(pattern, named, name)
    return name
