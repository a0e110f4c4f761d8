"""Tiny HunyuanVideo 1.5 checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hunyuan_videos import Videos
from tiny_hunyuan_video import text_to_video

from flowfactory_hunyuan_video.text_to_video import HunyuanVideoConfig


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Videos:
    folder: Path = tmp_path_factory.mktemp("hunyuan-video")
    return Videos(HunyuanVideoConfig, text_to_video, folder, "t2v", size=(28, 36, 5))  # type: ignore[arg-type]


@pytest.fixture(scope="session", params=["t2v", "i2v"])
def videos(request: pytest.FixtureRequest, family: Videos) -> Videos:
    """Each of the two tasks."""
    return replace(family, kind=request.param)
