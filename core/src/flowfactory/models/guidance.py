"""What pipelines do to classifier-free guidance beside mixing two velocities: norms that are kept, and an early end."""

from __future__ import annotations

import torch
from torch import Tensor

from flowfactory.flow import expand_sigma


def norm_ratio(given: Tensor, guided: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """The norm of ``given`` along ``dims``, which are kept with one element each, in norms of ``guided``."""
    wanted: Tensor = torch.linalg.vector_norm(given, dim=dims, keepdim=True)
    found: Tensor = torch.linalg.vector_norm(guided, dim=dims, keepdim=True)
    return wanted / found


def guide_until(late: Tensor, given: Tensor, guided: Tensor) -> Tensor:
    """``guided`` [B, ...], but ``given`` of the samples that are ``late`` [B]."""
    return torch.where(expand_sigma(late, given).bool(), given, guided)
