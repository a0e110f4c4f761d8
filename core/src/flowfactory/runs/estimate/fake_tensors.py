"""Tensors that have shapes and no bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


def to_fake(tensor: Tensor, fake: FakeTensorMode) -> Tensor:
    """A fake tensor of the same shape and dtype; ``tensor`` itself where it is one."""
    if isinstance(tensor, FakeTensor):
        return tensor
    with fake:
        return torch.empty(tensor.shape, dtype=tensor.dtype)


def mask_indices(index: Tensor | None) -> Sequence[Tensor | None]:
    """What ``index`` stands for where a mask\'s numbers are known: how many places there are, and which."""
    if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return [index]
    return index.nonzero(as_tuple=True)
