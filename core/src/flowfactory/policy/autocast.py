"""What autocast makes of a tensor, for what computes by itself."""

from __future__ import annotations

import torch
from torch import Tensor


def to_autocast(tensor: Tensor) -> Tensor:
    """``tensor`` in the dtype that autocast computes in on its device; as it is where autocast is off."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor
