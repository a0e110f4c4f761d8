"""FLUX.2 klein over the parts of a Flux2KleinPipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from flowfactory import Takes
from flowfactory.models import Family, Pretrained
from flowfactory_flux.flux2 import FLUX2, Flux2Config


def has_guidance(checkpoint: Pretrained) -> bool:
    """Whether the checkpoint has classifier-free guidance; so until its config is here."""
    return not checkpoint.config("").get("is_distilled", False)


FLUX2_KLEIN = replace(
    FLUX2,
    pipelines=("Flux2KleinPipeline",),
    guided=has_guidance,
    takes_guidance=has_guidance,
    negative_media=True,
)


class Flux2KleinConfig(Flux2Config):
    """Any diffusers Flux2KleinPipeline: FLUX.2 klein and klein base, which draw from text and from pictures."""

    known_as = ("klein", "flux-klein", "flux.2-klein-4b", "flux.2-klein-base-4b")

    family: ClassVar[Family] = FLUX2_KLEIN
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"black-forest-labs/FLUX.2-klein-base-4B": "Apache-2.0"}
    takes: ClassVar[Takes] = Takes(images=(0, math.inf))
