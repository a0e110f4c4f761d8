"""When adapters may be merged into the weights they are for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Merging:
    """Whether adapters may be added to the weights where that rounds them. Shared by the layers of a policy."""

    allowed: bool = False
