"""Whether what is seen stays the same throughout a video, by embeddings of its frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from flowfactory import CheckpointPath, RunError, Samples, UserError, hookimpl
from flowfactory.models import reading
from flowfactory.rewards import load_shared
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.frame_sampling import sample_frames
from flowfactory_rewards.prompt_checks import check_videos
from flowfactory_rewards.reward_model import RewardModelConfig, to_pil
from flowfactory_rewards.weights import BUFFERS, from_pretrained, grey, load_config, load_pretrained

if TYPE_CHECKING:
    from flowfactory import RunConfig

MODEL_TYPES = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip")
"""Types of models whose embedding of a picture is the first of their last states, or CLIP's."""
UNREAD = (*BUFFERS, r"(.*\.)?(classifier|pooler|decoder)\..*", r"(.*\.)?mask_token")
"""What checkpoints that were tuned to classify or to fill in pictures have besides."""


class VideoConsistencyConfig(RewardModelConfig):
    """How alike the frames of a video are, in [0, 1], 1 for a still: VBench's subject consistency (arXiv:2311.17982).

    The mean, over the frames that are looked at but the first, of the cosine with the frame before and of that with the
    first frame, each 0 where it is negative. Embeddings are those of a vision transformer: DINO's class token as VBench has
    it, DINOv2's, or CLIP's picture embedding, which VBench takes for backgrounds. A still scores best: watch motion too.
    """

    checkpoint_licences: ClassVar[Mapping[str, str]] = {"facebook/dino-vitb16": "Apache-2.0"}

    path: CheckpointPath = Field("facebook/dino-vitb16", description="a folder or a hub id with a vision transformer")
    frames: int = Field(16, ge=2, le=10_000, description="of a video that are looked at, evenly spread")

    def check(self, run: RunConfig) -> None:
        """What is drawn moves, and the files that are on this machine are whole."""
        super().check(run)
        check_videos(run, self, "video-consistency")

    def lacking(self) -> str | None:
        return missing_module("video-consistency", "transformers")

    def ignores_prompts(self) -> bool:
        return True

    def build(self, label: str) -> VideoConsistency:
        require(self)
        return VideoConsistency(label, self)


class VideoConsistency:
    """Each video by itself; one model for all labels with the same weights."""

    pointwise = True

    def __init__(self, label: str, config: VideoConsistencyConfig) -> None:
        self.label, self._config = label, config
        self._vision: VisionEncoder | None = None

    @hookimpl
    def prepare_reward(self, device: torch.device) -> None:
        """Read the weights. UserError: ``path`` has no vision transformer, or sees no picture."""
        vision = load_shared(VisionEncoder, self._config.path, *self._config.device_and_dtype(device))
        with torch.inference_mode(), reading(self._config.path):
            vision(grey())
        self._vision = vision

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: scores [B]}``. RunError: samples are pictures, or videos of one frame."""
        if samples.media.dim() == 4 or samples.media.shape[1] < 2:
            raise RunError("consistency is between frames, and what was drawn has one; draw videos")
        if self._vision is None:
            self.prepare_reward(samples.media.device)
        assert self._vision is not None
        clips = sample_frames(samples.media, self._config.frames)
        pictures, size = clips.flatten(0, 1), self._config.batch_size
        pictures = pictures.expand(-1, 3, -1, -1) if pictures.shape[1] == 1 else pictures
        with torch.inference_mode():
            embedded = [self._vision(pictures[i : i + size]) for i in range(0, len(pictures), size)]
        return {self.label: score_consistency(torch.cat(embedded).reshape(*clips.shape[:2], -1))}


def score_consistency(embedded: Tensor) -> Tensor:
    """[B] of embeddings [B, F, D] of length 1."""
    later = embedded[:, 1:]
    before, first = ((later * other).sum(-1).clamp(min=0) for other in (embedded[:, :-1], embedded[:, :1]))
    return ((before + first) / 2).mean(1)


class VisionEncoder:
    """The embeddings of pictures, as the model in ``path`` sees them."""

    def __init__(self, path: str, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, CLIPModel

        kind = load_config(AutoConfig, path).model_type
        if kind not in MODEL_TYPES:
            raise UserError(f"{path} holds a model of type {kind!r}; this reward sees through {', '.join(MODEL_TYPES)}")
        self._clip = kind == "clip"
        self._processor = from_pretrained(AutoImageProcessor, path)
        # a ViT's pooler, which DINO has no weights for, is not looked at
        options = {"add_pooling_layer": False} if kind == "vit" else {}
        self._model = load_pretrained(CLIPModel if self._clip else AutoModel, path, device, dtype, UNREAD, **options)

    def __call__(self, pictures: Tensor) -> Tensor:
        """[n, D] of length 1, float32, of pictures [n, 3, H, W] in [0, 1]."""
        values = self._processor(to_pil(pictures), return_tensors="pt")["pixel_values"]
        values = values.to(self._model.device, self._model.dtype)
        if self._clip:
            return functional.normalize(self._model.get_image_features(pixel_values=values).pooler_output.float(), dim=-1)
        return functional.normalize(self._model(pixel_values=values).last_hidden_state[:, 0].float(), dim=-1)
