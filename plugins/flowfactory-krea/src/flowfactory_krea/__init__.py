"""Krea 2 for flowfactory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowfactory import hookimpl

FOLDER = Path(__file__).parent


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register ``model: {name: krea2}`` and its example."""
    register("model", "krea2", "flowfactory_krea.krea2:Krea2Config")
    for path in sorted((FOLDER / "examples").glob("*.yaml")):
        register("example", path.stem, path)
