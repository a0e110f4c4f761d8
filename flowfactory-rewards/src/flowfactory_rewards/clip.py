"""CLIP's cosine (arXiv:2103.00020), what CLIPScore (arXiv:2104.08718) is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from flowfactory import CheckpointPath
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.dual_encoder import load_cosine_scorer
from flowfactory_rewards.reward_model import RewardModel, RewardModelConfig


class ClipConfig(RewardModelConfig):
    """How well picture and prompt agree: the cosine of their CLIP embeddings, in [-1, 1], about 0.2 to 0.35 where they do.

    Higher is better. CLIPScore (arXiv:2104.08718) is 2.5 times this where it is positive, and 0 elsewhere.
    """

    known_as = ("clip-score", "clipscore")

    checkpoint_licences: ClassVar[Mapping[str, str]] = {
        "openai/clip-vit-large-patch14": "see its page; the authors' code is MIT"
    }

    path: CheckpointPath = Field(
        "openai/clip-vit-large-patch14", description="a folder or a hub id with a CLIPModel, its tokenizer and its processor"
    )

    def lacking(self) -> str | None:
        return missing_module("clip", "transformers")

    def build(self, label: str) -> RewardModel:
        require(self)
        return RewardModel(label, self, load_cosine_scorer, self.path, self.path)
