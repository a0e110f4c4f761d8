"""DiffusionNFT, arXiv:2509.16117."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the algorithm ``nft``."""
    register("algorithm", "nft", "flowfactory_nft.nft:NFTConfig")
