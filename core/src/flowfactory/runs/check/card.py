"""The card that is here: how much memory it has, without PyTorch where there is none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flowfactory.discovery.installed_version import installed_version

FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvhost-gpu", "/dev/kfd", "/dev/dxg")
"""One of which is there where a driver of NVIDIA or AMD is, or that of Windows for Linux."""


def may_have_card(files: Sequence[str] = FILES, build: str | None = None, system: str = os.name) -> bool:
    """Whether PyTorch is worth asking; ``build`` is its version, that which is installed when left out."""
    version = build or installed_version("torch") or ""
    return not version.endswith("+cpu") and (system == "nt" or any(Path(file).exists() for file in files))


def card_memory() -> int | None:
    """Bytes of the smallest of the cards that a run could use here; None where there is none."""
    if not may_have_card():
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return min(torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count()))
