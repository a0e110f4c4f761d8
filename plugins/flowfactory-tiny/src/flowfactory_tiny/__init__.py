"""A small trained text-to-image generator, a verifiable reward for it, the quickstart and an example of each algorithm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowfactory import hookimpl

FOLDER = Path(__file__).parent


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register ``model: {name: tiny}``, the reward ``scene`` and the examples."""
    register("model", "tiny", "flowfactory_tiny.tiny:TinyConfig")
    register("reward", "scene", "flowfactory_tiny.scene_reward:SceneConfig")
    register("reward", "color-share", "flowfactory_tiny.color_share:ColorShareConfig")
    for path in sorted((FOLDER / "examples").glob("*.yaml")):
        register("example", path.stem, path)
