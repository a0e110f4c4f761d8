"""PickScore (arXiv:2305.01569): a CLIP tuned on which of two pictures people picked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from flowfactory import CheckpointPath
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.dual_encoder import CLIP_H, find_processor, load_logit_scorer
from flowfactory_rewards.reward_model import RewardModel, RewardModelConfig


class PickScoreConfig(RewardModelConfig):
    """Which picture people would pick (arXiv:2305.01569): the learned scale, about 100, times the cosine of a tuned CLIP-H.

    Higher is better; released weights give about 15 to 25, and a difference of 1 is odds of e to 1. Some runs divide it by 26.
    """

    known_as = ("pick-score", "pick")

    checkpoint_licences: ClassVar[Mapping[str, str]] = {
        "yuvalkirstain/PickScore_v1": "see its page",
        CLIP_H: "MIT",
    }

    path: CheckpointPath = Field("yuvalkirstain/PickScore_v1", description="a folder or a hub id with the tuned CLIPModel")
    processor: CheckpointPath | None = Field(
        None,
        description="a folder or a hub id with tokenizer and picture processor; when left out, the folder of the weights "
        "where they are in it, and else those of the CLIP-H that was tuned",
    )

    def lacking(self) -> str | None:
        return missing_module("pickscore", "transformers")

    def build(self, label: str) -> RewardModel:
        require(self)
        return RewardModel(label, self, load_logit_scorer, self.path, self.processor or find_processor(self.path, CLIP_H))
