"""Tiny Lumina Image 2.0 checkpoints, opened by the plugin and by diffusers."""

from __future__ import annotations

import pytest
from text_to_image import TextToImage
from tiny_lumina2 import lumina2

from flowfactory_lumina2.lumina2 import Lumina2Config

LENGTH = {"max_sequence_length": 100}


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> TextToImage:
    return TextToImage(Lumina2Config, lumina2, tmp_path_factory.mktemp("lumina2"), "released", LENGTH, LENGTH)
