"""What ``training.precision: auto`` is, once it is known what a run computes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig


def with_precision(config: RunConfig, cuda: bool) -> RunConfig:
    """``config`` with a precision that is not ``auto``: bf16 on CUDA, float32 on a CPU, where bf16 is slower."""
    if config.training.precision != "auto":
        return config
    chosen = config.training.model_copy(update={"precision": "bf16" if cuda else "float32"})
    return config.model_copy(update={"training": chosen})
