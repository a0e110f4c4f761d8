"""A small trained text-to-image generator, a verifiable reward for it, and the quickstart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowfactory import hookimpl

FOLDER = Path(__file__).parent


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register ``model: {name: tiny}``, the reward ``scene`` and the example ``quickstart``."""
    register("model", "tiny", "flowfactory_tiny.model:TinyConfig")
    register("reward", "scene", "flowfactory_tiny.reward:SceneConfig")
    register("example", "quickstart", FOLDER / "examples" / "quickstart.yaml")
