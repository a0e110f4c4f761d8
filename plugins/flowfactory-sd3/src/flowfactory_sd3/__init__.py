"""Stable Diffusion 3 and 3.5 (arXiv:2403.03206) for flowfactory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowfactory import hookimpl

FOLDER = Path(__file__).parent


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register ``model: {name: sd3}`` and its example."""
    register("model", "sd3", "flowfactory_sd3.sd3:SD3Config")
    for path in sorted((FOLDER / "examples").glob("*.yaml")):
        register("example", path.stem, path)
