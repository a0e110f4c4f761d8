"""How torch's allocator of CUDA memory is to work, as its environment variable says. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping

SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""The variable, and its older names, which torch reads too."""


def let_segments_grow(variables: MutableMapping[str, str], platform: str = sys.platform) -> None:
    """Have memory that was freed joined for larger tensors, which batches of other shapes want; unless the user set anything.

    To be called before torch is imported; processes that are started inherit it. Without CUDA it is not looked at. Only Linux
    has it; elsewhere torch would warn.
    """
    if platform == "linux" and not any(variables.get(name) for name in SETTINGS):
        variables[SETTINGS[0]] = "expandable_segments:True"
