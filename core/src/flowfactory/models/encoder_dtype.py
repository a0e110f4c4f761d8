"""The dtype that encoders compute in, and that of what they make."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from flowfactory.types import DTYPES


def choose_encoder_dtype(chosen: str, run: torch.dtype, device: str) -> torch.dtype:
    """What ``chosen`` of ``encoders_in`` means in a run of the dtype ``run`` on such a ``device``: a CPU is slow in bf16."""
    if chosen != "auto":
        return DTYPES[chosen]
    return run if device == "cpu" else torch.bfloat16


def round_entry(
    entry: Mapping[str, Tensor], made_in: torch.dtype, run: torch.dtype, exact: Collection[str]
) -> Mapping[str, Tensor]:
    """``entry`` with what encoders made in their dtype in that of the ``run``, which the transformer takes, but ``exact``.

    Each tensor is a copy: a row of a batch would keep the whole batch in memory.
    """
    return {
        name: tensor.to(run if tensor.dtype == made_in and name not in exact else tensor.dtype, copy=True)
        for name, tensor in entry.items()
    }
