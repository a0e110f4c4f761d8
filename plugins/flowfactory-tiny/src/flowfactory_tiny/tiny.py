"""The embedded generator: an ordinary StableDiffusion3Pipeline folder inside this package."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from flowfactory import CheckpointPath
from flowfactory.models import Family
from flowfactory_sd3.sd3 import SD3, SD3Config
from flowfactory_tiny import FOLDER


class TinyConfig(SD3Config):
    """A 1.7 M parameter Stable Diffusion 3 that draws coloured shapes at 32x32 pixels; pretrained, offline."""

    known_as = ("toy", "small", "test")
    starter_options: ClassVar[Mapping[str, Any]] = {"train": "full"}
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"pipeline, in the package flowfactory-tiny": "Apache-2.0"}
    family: ClassVar[Family] = replace(SD3, comfyui=())

    path: CheckpointPath = Field(str(FOLDER / "pipeline"), description="the folder in this package")
    max_sequence_length: int = Field(1, ge=1, le=512, description="as pretrained: there is no T5 encoder")
