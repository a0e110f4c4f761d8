"""How good a picture looks without one to compare it with: no-reference quality, for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from flowfactory import CheckpointPath
from flowfactory.rewards import to_pixels
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.dual_encoder import load_clip
from flowfactory_rewards.reward_model import RewardModel, RewardModelConfig, Scorer
from flowfactory_rewards.weights import refuse_one_answer

WORDS = {
    "quality": ("Good photo.", "Bad photo."),
    "brightness": ("Bright photo.", "Dark photo."),
    "noisiness": ("Clean photo.", "Noisy photo."),
    "colorfulness": ("Colorful photo.", "Dull photo."),
    "sharpness": ("Sharp photo.", "Blurry photo."),
    "contrast": ("High contrast photo.", "Low contrast photo."),
    "natural": ("Natural photo.", "Synthetic photo."),
    "beautiful": ("Beautiful photo.", "Ugly photo."),
}
"""Pairs of texts for CLIP-IQA, the good one first."""


class ImageQualityConfig(RewardModelConfig):
    """How good a picture looks by itself, whatever its prompt; higher is better. For evaluation: each is easily fooled.

    clip-iqa (arXiv:2207.12396), in [0, 1]: the probability, by a CLIP at temperature 0.01, that the picture is the good one of
    two texts. blur, in [-1, 0]: minus the perceptual blur of Crété et al. (2007). noise, in [-1, 0]: minus the estimated
    standard deviation of Gaussian noise, of Donoho and Johnstone (1994). The last two are scikit-image's and need no weights.
    """

    checkpoint_licences: ClassVar[Mapping[str, str]] = {
        "openai/clip-vit-base-patch16": "see its page; the authors' code is MIT"
    }

    metric: Literal["clip-iqa", "blur", "noise"] = Field("clip-iqa", description="what is measured; see above")
    path: CheckpointPath = Field(
        "openai/clip-vit-base-patch16",
        description="for clip-iqa: a folder or a hub id with a CLIPModel, tokenizer and processor",
    )
    words: Literal["quality", "brightness", "noisiness", "colorfulness", "sharpness", "contrast", "natural", "beautiful"] = (
        Field("quality", description="for clip-iqa: what the two texts are about")
    )

    @property
    def checkpoints(self) -> tuple[str, ...]:
        return (self.path,) if self.metric == "clip-iqa" else ()

    def lacking(self) -> str | None:
        return missing_module("image-quality", *(["transformers"] if self.metric == "clip-iqa" else ["skimage", "pywt"]))

    def ignores_prompts(self) -> bool:
        return True

    def build(self, label: str) -> RewardModel:
        require(self)
        if self.metric == "clip-iqa":
            return RewardModel(label, self, load_clip_iqa, self.path, self.words, reads_prompts=False)
        return RewardModel(label, self, load_measure, self.metric, reads_prompts=False)


def load_clip_iqa(path: str, words: str, device: torch.device, dtype: torch.dtype) -> Scorer:
    """Scores in [0, 1] by the CLIP in ``path`` and the pair of texts called ``words``."""
    eyes = load_clip(path, path, device, dtype)
    with torch.inference_mode():
        refuse_one_answer(lambda prompt: eyes.embed_texts([prompt]), path)
        pair = eyes.embed_texts(WORDS[words])

    def score(pictures: Tensor, prompts: object) -> Tensor:
        return (100 * eyes.embed_images(pictures) @ pair.T).softmax(1)[:, 0]

    return score


def load_measure(metric: str, device: torch.device, dtype: torch.dtype) -> Scorer:
    """Scores of at most 0, higher is better, by a measure that takes no weights; on the processor."""
    measure = {"blur": measure_blur, "noise": measure_noise}[metric]

    def score(pictures: Tensor, prompts: object) -> Tensor:
        return torch.tensor([-measure(picture) for picture in to_pixels(pictures)])

    return score


def measure_blur(picture: NDArray[np.uint8]) -> float:
    """In [0, 1], 0 for a sharp one, of a picture [H, W, 3]."""
    from skimage.measure import blur_effect

    return float(blur_effect(picture, channel_axis=-1))


def measure_noise(picture: NDArray[np.uint8]) -> float:
    """The standard deviation, where white is 1, averaged over the channels of a picture [H, W, 3]."""
    from skimage.restoration import estimate_sigma

    return float(estimate_sigma(picture / 255, average_sigmas=True, channel_axis=-1))
