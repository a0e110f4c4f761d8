"""HunyuanVideo 1.5 (arXiv:2511.18870) for flowfactory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowfactory import hookimpl

FOLDER = Path(__file__).parent


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the models ``hunyuan-video-1.5`` and ``hunyuan-video-1.5-i2v``, and an example of each."""
    register("model", "hunyuan-video-1.5", "flowfactory_hunyuan_video.text_to_video:HunyuanVideoConfig")
    register("model", "hunyuan-video-1.5-i2v", "flowfactory_hunyuan_video.image_to_video:HunyuanVideoI2VConfig")
    for path in sorted((FOLDER / "examples").glob("*.yaml")):
        register("example", path.stem, path)
