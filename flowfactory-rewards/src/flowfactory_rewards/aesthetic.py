"""LAION's improved aesthetic predictor, the reward of DDPO (arXiv:2305.13301): how much people like a picture's looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from flowfactory import CheckpointPath
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.dual_encoder import load_clip_images
from flowfactory_rewards.reward_model import RewardModel, RewardModelConfig, Scorer
from flowfactory_rewards.weights import LINEAR_PREDICTOR, build_linear_layers, read_tensors, refuse_other_names, strip_prefix


class AestheticConfig(RewardModelConfig):
    """How much people like its looks, whatever the prompt: the improved aesthetic predictor on CLIP ViT-L/14 embeddings.

    A rating from 1 to 10, unbounded in principle; higher is better, and released weights mostly give 4 to 7.
    Source: christophschuhmann/improved-aesthetic-predictor; the reward of DDPO (arXiv:2305.13301).
    """

    known_as = ("aesthetics", "laion-aesthetic", "aesthetic-score")

    checkpoint_licences: ClassVar[Mapping[str, str]] = {
        "openai/clip-vit-large-patch14": "see its page; the authors' code is MIT",
        "trl-lib/ddpo-aesthetic-predictor": "Apache-2.0",
    }

    path: CheckpointPath = Field(
        "openai/clip-vit-large-patch14", description="a folder or a hub id with the CLIPModel and its processor"
    )
    predictor: CheckpointPath = Field(
        "trl-lib/ddpo-aesthetic-predictor", description="a folder or a hub id with the file of the predictor"
    )
    file: str = Field(
        "aesthetic-model.pth", description="the predictor's file there; LAION calls it sac+logos+ava1-l14-linearMSE.pth"
    )

    def lacking(self) -> str | None:
        return missing_module("aesthetic", "transformers")

    @property
    def files(self) -> tuple[tuple[str, str | None], ...]:
        return *super().files, (self.predictor, self.file)

    def ignores_prompts(self) -> bool:
        return True

    def build(self, label: str) -> RewardModel:
        require(self)
        return RewardModel(label, self, _load_scorer, self.path, self.predictor, self.file, reads_prompts=False)


def _load_scorer(path: str, predictor: str, file: str, device: torch.device, dtype: torch.dtype) -> Scorer:
    source = f"{file} in {predictor}"
    state = read_tensors(predictor, file)
    refuse_other_names(state, [r"layers\..*"], [], source)
    encoder = load_clip_images(path, device, dtype)
    width = encoder.model.config.projection_dim
    layers = build_linear_layers(strip_prefix(state, "layers."), LINEAR_PREDICTOR, width, source)
    rating = nn.Sequential(*layers).to(device)

    def score(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        found: Tensor = rating(encoder.embed_images(pictures))[:, 0]
        return found

    return score
