"""Both tasks of HunyuanVideo 1.5 by their tiny checkpoints, opened by the plugin and by diffusers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import tiny_wan
from diffusers import ClassifierFreeGuidance
from text_to_image import TextToImage

from flowfactory import Prompt, Trajectory
from flowfactory_hunyuan_video.image_to_video import HunyuanVideoI2VConfig
from flowfactory_hunyuan_video.text_to_video import HunyuanVideoConfig

TEXTS = ('a photo of a "red" circle', "cat")
SIZES = {(20, 28): (28, 36, 5), (28, 28): (32, 32, 5), (40, 20): (40, 20, 5)}
"""What the pipeline draws of a picture of 32 by 32 pixels, by the picture's own height and width."""


@dataclass(frozen=True)
class Videos(TextToImage):
    """Both tasks; the kind is t2v or i2v. What the call of a pipeline takes for guidance is in its guider."""

    def pipeline(self, kind: str = "") -> Any:
        pipeline = super().pipeline(kind)
        pipeline.vae.enable_slicing()  # the mask of its attention is for one video
        return pipeline

    def options(self, kind: str = "", **given: Any) -> Any:
        config = HunyuanVideoI2VConfig if (kind or self.kind) == "i2v" else HunyuanVideoConfig
        return config.model_validate({"path": str(self.checkpoint(kind)), "train": "full", **given})

    def prompts(self, texts: Any = TEXTS, kind: str = "", picture: tuple[int, int] = (20, 28)) -> list[Prompt]:
        """Of the texts, with a picture each where the task takes one."""
        told = [Prompt(text, index) for index, text in enumerate(texts)]
        if (kind or self.kind) == "t2v":
            return told
        stem = f"{picture[0]}-{picture[1]}"
        return [
            replace(prompt, images=(tiny_wan.picture(self.folder / f"{stem}-{prompt.index}", prompt.index, picture),))
            for prompt in told
        ]

    def check(self, prompts: Any = None, kind: str = "", options: Any = None, call: Any = None, **given: Any) -> Trajectory:
        pipeline = self.pipeline(kind)
        pipeline.guider = ClassifierFreeGuidance(given.get("guidance", 1.0))
        prompts = self.prompts(kind=kind) if prompts is None else prompts
        return super().check(prompts, kind, options, call, pipeline=pipeline, **given)

    def bench(self, prompts: Any = None, kind: str = "", guidance: float = 1.0, negative: str = "", **given: Any) -> Any:
        prompts = self.prompts(kind=kind) if prompts is None else prompts
        return super().bench(prompts, kind, guidance, negative, **given)

    def drawn(self, pipeline: Any, made: Any) -> Any:
        pipeline.guider = ClassifierFreeGuidance(made.plan.guidance)
        return super().drawn(pipeline, made)
