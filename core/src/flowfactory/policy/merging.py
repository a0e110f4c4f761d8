"""When adapters may be merged into the weights they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Merging:
    """Whether adapters may be added to the weights where that rounds them. Shared by the layers of a policy."""

    allowed: bool = False

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Merging:
        """Itself: layers that are copied hear of it as those that they were copied from."""
        return self
