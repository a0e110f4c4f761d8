"""When adapters may be merged into the weights they are for, when that pays, and their sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Merging:
    """Whether adapters may be added to the weights where that rounds them. Shared by the layers of a policy."""

    allowed: bool = False

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Merging:
        """Itself: layers that are copied hear of it as those that they were copied from."""
        return self


def pays(x: Tensor, inputs: int, outputs: int) -> bool:
    """Whether x [..., in] has so many rows that one sum of [out, in] costs less than a product with A and B for each."""
    rows = x.numel() // inputs
    return rows * (inputs + outputs) > inputs * outputs


def merge(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + s B A, [out, in]."""
    return torch.addmm(weight, up, down, alpha=scale)
