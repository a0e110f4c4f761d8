"""Qwen-Image (arXiv:2508.02324), from texts, and Qwen-Image-Edit, from texts and pictures, for flowfactory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowfactory import hookimpl

FOLDER = Path(__file__).parent


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the models ``qwen-image`` and ``qwen-image-edit``, and an example of each."""
    register("model", "qwen-image", "flowfactory_qwen_image.qwen_image:QwenImageConfig")
    register("model", "qwen-image-edit", "flowfactory_qwen_image.qwen_image_edit:QwenImageEditConfig")
    for path in sorted((FOLDER / "examples").glob("*.yaml")):
        register("example", path.stem, path)
