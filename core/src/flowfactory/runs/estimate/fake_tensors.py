"""Tensors that have shapes and no bytes, and CUDA's autocast on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
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


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Within it autocast keeps in float32 what it keeps so on CUDA and not on a CPU, which stands in for it here."""
    # replaced, because checkpointed blocks run again where no mode of functions reaches
    whole = {name: getattr(nn.functional, name) for name in ("layer_norm", "rms_norm", "softmax")}

    def exact(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            if torch.is_autocast_enabled("cpu"):
                args = tuple(arg.float() if isinstance(arg, Tensor) else arg for arg in args)
            return function(*args, **kwargs)

        return run

    for name, function in whole.items():
        setattr(nn.functional, name, exact(function))
    try:
        yield
    finally:
        for name, function in whole.items():
            setattr(nn.functional, name, function)
