"""Qwen-Image (arXiv:2508.02324) and Qwen-Image-2.1, from texts, and from texts and pictures, for flowfactory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowfactory import hookimpl

FOLDER = Path(__file__).parent


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the models ``qwen-image`` and ``qwen-image-2.1``, those that edit, and an example of each."""
    register("model", "qwen-image", "flowfactory_qwen_image.qwen_image:QwenImageConfig")
    register("model", "qwen-image-edit", "flowfactory_qwen_image.qwen_image_edit:QwenImageEditConfig")
    register("model", "qwen-image-2.1", "flowfactory_qwen_image.qwen_image_21:QwenImage21Config")
    register("model", "qwen-image-2.1-edit", "flowfactory_qwen_image.qwen_image_21_edit:QwenImage21EditConfig")
    for path in sorted((FOLDER / "examples").glob("*.yaml")):
        register("example", path.stem, path)
