"""Tiny Sana checkpoints, opened by the plugin and by diffusers."""

from __future__ import annotations

import pytest
from text_to_image import TextToImage
from tiny_sana import sana

from flowfactory_sana.sana import SanaConfig

LENGTH = {"max_sequence_length": 30}


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> TextToImage:
    folder, call = tmp_path_factory.mktemp("sana"), {**LENGTH, "use_resolution_binning": False}
    return TextToImage(SanaConfig, sana, folder, "1", LENGTH, call, size=(32, 64))
