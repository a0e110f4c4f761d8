"""FLUX.1, FLUX.1 Kontext, FLUX.2 and FLUX.2 klein for flowfactory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowfactory import hookimpl

FOLDER = Path(__file__).parent


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the four models and an example of each."""
    register("model", "flux1", "flowfactory_flux.flux1:Flux1Config")
    register("model", "flux1-kontext", "flowfactory_flux.flux1_kontext:Flux1KontextConfig")
    register("model", "flux2", "flowfactory_flux.flux2:Flux2Config")
    register("model", "flux2-klein", "flowfactory_flux.flux2_klein:Flux2KleinConfig")
    for path in sorted((FOLDER / "examples").glob("*.yaml")):
        register("example", path.stem, path)
