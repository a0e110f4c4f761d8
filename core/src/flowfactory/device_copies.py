"""What the host makes for a device, brought there without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def is_pinned_for(device: torch.device | str) -> bool:
    """Whether what goes to ``device`` goes through pinned memory: from other memory the host waits until it has arrived."""
    return torch.device(device).type == "cuda"


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor``, of the host, on ``device``: the host goes on while it is on its way, and must not write to it."""
    if is_pinned_for(device) and tensor.device.type == "cpu":
        # the allocator keeps pinned memory until the copy is done
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
