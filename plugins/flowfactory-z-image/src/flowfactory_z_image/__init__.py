"""Z-Image and Z-Image-Turbo (arXiv:2511.22699) for flowfactory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowfactory import hookimpl

FOLDER = Path(__file__).parent


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register ``model: {name: z-image}`` and its example."""
    register("model", "z-image", "flowfactory_z_image.z_image:ZImageConfig")
    for path in sorted((FOLDER / "examples").glob("*.yaml")):
        register("example", path.stem, path)
