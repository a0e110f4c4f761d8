"""SigLIP (arXiv:2303.15343) and SigLIP 2 (arXiv:2502.14786) of fixed resolution: whether a picture and a prompt are a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from flowfactory import CheckpointPath
from flowfactory.models import check_vocabulary, load_tokenizer
from flowfactory.rewards import load_shared
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.dual_encoder import DualEncoder, load_image_transform
from flowfactory_rewards.reward_model import RewardModel, RewardModelConfig, Scorer
from flowfactory_rewards.weights import load_pretrained


class SiglipConfig(RewardModelConfig):
    """Whether picture and prompt are a pair, by SigLIP (arXiv:2303.15343) or SigLIP 2 (arXiv:2502.14786) of fixed resolution.

    Higher is better. The logit is any number, mostly below 0; the probability is its sigmoid, in [0, 1].
    """

    checkpoint_licences: ClassVar[Mapping[str, str]] = {"google/siglip2-so400m-patch14-384": "Apache-2.0"}

    path: CheckpointPath = Field(
        "google/siglip2-so400m-patch14-384", description="a folder or a hub id with a SiglipModel, its tokenizer and processor"
    )
    score: Literal["logit", "probability"] = Field(
        "logit", description="logit: scale times cosine plus bias; probability: the sigmoid of it, flat where pairs are poor"
    )

    def lacking(self) -> str | None:
        return missing_module("siglip", "transformers", "sentencepiece")

    def build(self, label: str) -> RewardModel:
        require(self)
        return RewardModel(label, self, _load_scorer, self.path, self.score)


def _load_scorer(path: str, score: str, device: torch.device, dtype: torch.dtype) -> Scorer:
    encoder: DualEncoder = load_shared(_load_encoder, path, device, dtype)
    bias = encoder.model.logit_bias.float()
    if score == "probability":
        return lambda pictures, prompts: (encoder.logit(pictures, prompts) + bias).sigmoid()
    return lambda pictures, prompts: encoder.logit(pictures, prompts) + bias


def _load_encoder(path: str, device: torch.device, dtype: torch.dtype) -> DualEncoder:
    from transformers import AutoTokenizer, SiglipImageProcessorPil, SiglipModel

    model = load_pretrained(SiglipModel, path, device, dtype)
    source = f"the tokenizer in {path}"
    tokenizer = load_tokenizer(AutoTokenizer, path, source)
    check_vocabulary(tokenizer, model.config.text_config.vocab_size, source)
    tokenizer.padding_side = "right"  # features are those of the last place, which is padding
    length = model.config.text_config.max_position_embeddings

    def tokenize(texts: list[str]) -> torch.Tensor:
        lower = [text.lower() for text in texts]  # as both were trained; not every released tokenizer does it
        found = tokenizer(lower, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids: torch.Tensor = found.input_ids
        return ids

    return DualEncoder(model, load_image_transform(SiglipImageProcessorPil, path), tokenize)
