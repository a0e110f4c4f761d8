"""First and last frame to video over the parts of a WanImageToVideoPipeline that is given a last picture too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from flowfactory import Takes
from flowfactory.models import Family
from flowfactory_wan.wan_i2v import WAN_I2V, PicturesConfig

if TYPE_CHECKING:
    from flowfactory import RunConfig

WAN_FLF2V = replace(WAN_I2V, pipelines=("WanImageToVideoPipeline",))


class WanFLF2VConfig(PicturesConfig):
    """Any diffusers WanImageToVideoPipeline but the 5B: Wan 2.1, Wan 2.2 A14B, from a first and a last frame."""

    known_as = ("flf2v", "flf", "wan-flf", "first-last-frame")

    family: ClassVar[Family] = WAN_FLF2V
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers": "Apache-2.0"}
    takes: ClassVar[Takes] = Takes(images=(2, 2))

    def check(self, run: RunConfig) -> None:
        """As every family's, and a video has room for both frames."""
        super().check(run)
        for section, frames in {"sampling": run.sampling.frames, "evaluation": run.evaluation.frames}.items():
            if frames == 1:
                raise ValueError(f"{section}.frames 1: a first and a last frame are two; the nearest is 5")

    def checkpoint_error(self) -> str | None:
        transformer = self.checkpoint.config("transformer")
        one = transformer.get("image_dim") is not None and transformer.get("pos_embed_seq_len") is None
        if self.checkpoint.config("").get("expand_timesteps") or one:
            return f"model.path: {self.path} is given a first frame alone; use the model wan-i2v"
        return super().checkpoint_error()
