"""GenEval (arXiv:2310.11513): whether the objects that a prompt names are there, as many, of that colour, in that place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import CheckpointPath, Samples, hookimpl
from flowfactory.rewards import check_prompts, load_shared
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.frame_sampling import sample_frames
from flowfactory_rewards.geneval_models import ColorClassifier, Detector
from flowfactory_rewards.geneval_rules import Detections, Requirements, evaluate, filter_detections, parse_requirements
from flowfactory_rewards.prompt_checks import parse_samples
from flowfactory_rewards.reward_model import RewardModelConfig

if TYPE_CHECKING:
    from flowfactory import RunConfig


class GenevalConfig(RewardModelConfig):
    """Whether the objects of a prompt are there, in the asked number, colours and places; in [0, 1], higher is better.

    What is asked for is in the prompt's metadata, as GenEval's released files (arXiv:2310.11513) have it: ``include``,
    ``exclude`` and ``tag``, or a mapping of those under ``geneval``. Objects are found by a detector, either one that is
    told the classes (OWL-ViT, OWLv2, Grounding DINO) or one with COCO's classes (DETR and its kind), colours by CLIP.
    """

    starter_prompts = (
        {"prompt": "a photo of two dogs", "tag": "counting", "include": [{"class": "dog", "count": 2}]},
        {"prompt": "a photo of a red apple", "tag": "colors", "include": [{"class": "apple", "count": 1, "color": "red"}]},
        {"prompt": "a photo of a blue chair", "tag": "colors", "include": [{"class": "chair", "count": 1, "color": "blue"}]},
        {"prompt": "a photo of three cups", "tag": "counting", "include": [{"class": "cup", "count": 3}]},
        {"prompt": "a photo of a bench", "tag": "single_object", "include": [{"class": "bench", "count": 1}]},
        {"prompt": "a photo of a yellow bus", "tag": "colors", "include": [{"class": "bus", "count": 1, "color": "yellow"}]},
    )
    checkpoint_licences: ClassVar[Mapping[str, str]] = {
        "PekingU/rtdetr_r50vd": "Apache-2.0",
        "openai/clip-vit-large-patch14": "see its page; the authors' code is MIT",
    }

    path: CheckpointPath = Field("PekingU/rtdetr_r50vd", description="a folder or a hub id with the detector")
    clip: CheckpointPath = Field("openai/clip-vit-large-patch14", description="a folder or a hub id with the CLIP for colours")
    credit: Literal["strict", "partial"] = Field(
        "strict",
        description="strict: 1 if everything holds, else 0, as GenEval scores; partial: the mean over all that is asked",
    )
    threshold: float = Field(0.3, ge=0, lt=1, description="confidence above which an object counts")
    counting_threshold: float = Field(0.9, ge=0, lt=1, description="the same for prompts with the tag 'counting'")
    max_objects: int = Field(16, ge=1, le=1000, description="of a class, the most confident ones")
    max_overlap: float = Field(
        1.0, gt=0, le=1, description="intersection over union from which on the less confident of a class is dropped; 1: never"
    )
    position_threshold: float = Field(0.1, ge=0, description="of the boxes' sizes, that centres must be apart beyond")

    @property
    def checkpoints(self) -> tuple[str, ...]:
        return self.path, self.clip

    def check(self, run: RunConfig) -> None:
        """Every prompt says what is to be seen, and the files that are on this machine are whole."""
        super().check(run)
        check_prompts(run, self, lambda prompt: parse_requirements(prompt.text, prompt.metadata))

    def lacking(self) -> str | None:
        return missing_module("geneval", "transformers", "scipy")

    def build(self, label: str) -> Geneval:
        require(self)
        return Geneval(label, self)


class Geneval:
    """Each picture by itself, each frame of a video too; the score of a video is the mean over its frames."""

    pointwise = True

    def __init__(self, label: str, config: GenevalConfig) -> None:
        self.label, self._config = label, config
        self._detector: Detector | None = None
        self._color_classifier: ColorClassifier | None = None

    @hookimpl
    def prepare_reward(self, device: torch.device) -> None:
        """Read the weights of the detector and of CLIP. UserError: ``path`` has no detector."""
        config = self._config
        self._detector = load_shared(Detector, config.path, *config.device_and_dtype(device))
        self._color_classifier = load_shared(ColorClassifier, config.clip, *config.device_and_dtype(device))

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: scores [B]}``. RunError: a prompt says no objects, or some that the detector has no class for."""
        if self._detector is None:
            self.prepare_reward(samples.media.device)
        asked = parse_samples(samples, parse_requirements)
        clips = sample_frames(samples.media, self._config.frames)
        frames = clips.shape[1]
        pictures = clips.flatten(0, 1)
        pictures = pictures.expand(-1, 3, -1, -1) if pictures.shape[1] == 1 else pictures
        size, scores = self._config.batch_size, []
        with torch.inference_mode():
            for what, alike in groupby(range(len(pictures)), key=lambda row: asked[row // frames]):
                rows = list(alike)
                for start in range(0, len(rows), size):
                    scores += self._score_pictures(pictures[rows[start : start + size]], what)
        return {self.label: torch.tensor(scores).reshape(len(clips), frames).mean(1)}

    def _score_pictures(self, pictures: Tensor, asked: Requirements) -> list[float]:
        assert self._detector is not None
        config = self._config
        threshold = config.counting_threshold if asked.tag == "counting" else config.threshold
        scores = []
        for picture, found in zip(pictures, self._detector(pictures, asked.names, threshold), strict=True):
            objects = {
                name: filter_detections(found[name], threshold, config.max_objects, config.max_overlap) for name in asked.names
            }
            painted = self._classify_colors(picture, objects, asked)
            scores.append(evaluate(asked, painted, config.credit, config.position_threshold))
        return scores

    def _classify_colors(self, picture: Tensor, objects: Detections, asked: Requirements) -> Detections:
        """The objects, with the colours of those that a clause looks at."""
        assert self._color_classifier is not None
        most: dict[str, int] = {}
        for clause in asked.include:
            if clause.color:
                most[clause.name] = max(clause.count, most.get(clause.name, 0))
        painted = dict(objects)
        for name, count in most.items():
            seen = objects[name][:count]
            colours = self._color_classifier(picture, [one.box for one in seen], name)
            painted[name] = [
                *(replace(one, color=color) for one, color in zip(seen, colours, strict=True)),
                *objects[name][count:],
            ]
        return painted
