"""Lumina Image 2.0 (arXiv:2503.21758) for flowfactory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowfactory import hookimpl

FOLDER = Path(__file__).parent


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register ``model: {name: lumina2}`` and its example."""
    register("model", "lumina2", "flowfactory_lumina2.lumina2:Lumina2Config")
    for path in sorted((FOLDER / "examples").glob("*.yaml")):
        register("example", path.stem, path)
