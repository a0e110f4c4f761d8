"""Wan 2.1 and 2.2 video models (arXiv:2503.20314) for flowfactory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowfactory import hookimpl

FOLDER = Path(__file__).parent


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the models ``wan-t2v``, ``wan-i2v``, ``wan-flf2v`` and ``wan-v2v``, and an example of each."""
    register("model", "wan-t2v", "flowfactory_wan.wan_t2v:WanT2VConfig")
    register("model", "wan-i2v", "flowfactory_wan.wan_i2v:WanI2VConfig")
    register("model", "wan-flf2v", "flowfactory_wan.wan_flf2v:WanFLF2VConfig")
    register("model", "wan-v2v", "flowfactory_wan.wan_v2v:WanV2VConfig")
    for path in sorted((FOLDER / "examples").glob("*.yaml")):
        register("example", path.stem, path)
