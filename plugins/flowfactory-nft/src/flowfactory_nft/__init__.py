"""DiffusionNFT, arXiv:2509.16117, and V-GRPO, arXiv:2604.23380, which learns from the same error."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the algorithms ``nft`` and ``v-grpo``."""
    register("algorithm", "nft", "flowfactory_nft.nft:NFTConfig")
    register("algorithm", "v-grpo", "flowfactory_nft.vgrpo:VGRPOConfig")
