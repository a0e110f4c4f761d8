"""The parts of a transformer that stay float32 in a run of bf16, as its class of diffusers says: embedders of times, norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from flowfactory.policy.blocks import replace_forward

ROUNDED = (nn.Linear, nn.modules.conv._ConvNd)
"""What autocast computes in bf16; norms and sums it leaves in float32."""


def is_island(module: nn.Module, name: str) -> bool:
    """Whether the parameter or module ``name`` of the transformer ``module`` is in what its class keeps in float32."""
    kept = getattr(module, "_keep_in_fp32_modules", None) or ()
    return any(part in kept for part in name.split("."))


def find_islands(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules that are kept in float32, by name."""
    found: list[str] = []
    for name, part in module.named_modules():
        if is_island(module, name) and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
            yield name, part


def keep_in_float32(module: nn.Module) -> list[str]:
    """The names of the islands of ``module`` whose layers autocast would round, and no longer does."""
    rounded = [(name, part) for name, part in find_islands(module) if any(isinstance(x, ROUNDED) for x in part.modules())]
    for _, part in rounded:
        replace_forward(part, _exact(type(part).forward))
    return [name for name, _ in rounded]


@cache
def _exact(forward: Callable[..., Any]) -> Callable[..., Any]:
    def exact(part: nn.Module, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(_to_float32, (args, kwargs))
        kind = next(part.parameters()).device.type
        with torch.autocast(kind, enabled=False):
            return forward(part, *args, **kwargs)

    return exact


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
