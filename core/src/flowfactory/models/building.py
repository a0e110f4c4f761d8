"""Modules as the config of a checkpoint has them, without memory for their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from flowfactory.errors import UserError
from flowfactory.models.checkpoint_files import AGAIN, reading

PACKED = 8
"""So many numbers a byte may hold at the most, where they are packed."""
FEW = 2**20
"""Numbers that cost nothing: whatever reads the weights says more of what is wrong."""


def build_on_meta(kind: Any, source: str | Path, **where: str) -> nn.Module:
    """The module of the class ``kind``, of diffusers or transformers, on "meta", as the config in ``source`` has it."""
    if hasattr(kind, "load_config"):  # of diffusers
        read, make = kind.load_config, kind.from_config
    elif hasattr(kind, "from_config"):  # what chooses a class by the config
        from transformers import AutoConfig

        read, make = AutoConfig.from_pretrained, kind.from_config
        where = {**where, "trust_remote_code": False}  # type: ignore[dict-item]
    else:
        read, make = kind.config_class.from_pretrained, kind
    config = read(source, **where)
    with torch.device("meta"):
        module: nn.Module = make(config)
    return module


def build_unfilled(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """The module of the class ``kind``, of diffusers, as the config in ``folder`` has it, with parameters on "meta".

    Its buffers have their numbers, made as ``from_pretrained`` makes them where it is to round to ``dtype``.
    """

    def bare(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    config, before = kind.load_config(folder), torch.get_default_dtype()
    registered = register_module_parameter_registration_hook(bare)  # type: ignore[arg-type]
    torch.set_default_dtype(dtype)
    try:
        module: nn.Module = kind.from_config(config)
    finally:
        torch.set_default_dtype(before)
        registered.remove()
    return module


def check_count(kind: Any, folder: Path, source: str, weights: Sequence[Path], packed: bool) -> None:
    """UserError: the config in ``folder`` makes a module of more numbers than the files ``weights`` can hold.

    Found out before a library makes room for all that the config says.
    """
    with reading(source):
        count = sum(weight.numel() for weight in build_on_meta(kind, folder).parameters())
    size = sum(file.stat().st_size for file in weights)
    if count > max(FEW, size * (PACKED if packed else 1)):
        told = f"has weights of {size} bytes, which cannot be the {count} numbers that its config.json says"
        raise UserError(f"{source} {told}; {AGAIN}, or a config.json that goes with its weights")
