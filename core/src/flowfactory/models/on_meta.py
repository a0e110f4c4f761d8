"""Modules of a checkpoint as its configs have them, without their weights; and which of their layers LoRA would adapt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from flowfactory.errors import UserError
from flowfactory.models.pretrained import Pretrained
from flowfactory.suggestions import did_you_mean


def build_on_meta(checkpoint: Pretrained, name: str) -> nn.Module:
    """The module of the part ``name``, on "meta". UserError: its config is not to be had."""
    library, kind = checkpoint.settings[name]
    made = getattr(import_module(library), kind)
    try:
        if hasattr(made, "load_config"):  # of diffusers
            config = made.load_config(checkpoint.path, subfolder=name)
            build: Callable[[Any], nn.Module] = made.from_config
        else:
            config, build = made.config_class.from_pretrained(checkpoint.path, subfolder=name), made
    except (OSError, ImportError) as error:
        raise UserError(f"model.path {checkpoint.path}: {' '.join(str(error).split())}") from error
    with torch.device("meta"):
        return build(config)


def check_lora_targets(checkpoint: Pretrained, names: Iterable[str], targets: Iterable[str]) -> None:
    """ValueError: no linear layer of the parts ``names`` has a name that ends in one of ``targets``. Reads no weights."""
    layers = {layer for name in names for layer, module in build_on_meta(checkpoint, name).named_modules() if is_linear(module)}
    for target in targets:
        if not any(layer == target or layer.endswith(f".{target}") for layer in layers):
            endings = {_ending(layer) for layer in layers}
            raise ValueError(f"model.train.lora.targets: no layer's name ends in {target!r}{did_you_mean(target, endings)}")


def is_linear(module: nn.Module) -> bool:
    """Whether it is a layer that adapters go on."""
    return isinstance(module, nn.Linear)


def _ending(layer: str) -> str:
    """The end of a layer's name that says which it is: ``to_q``, ``to_out.0``."""
    *before, last = layer.rsplit(".", 2)
    return f"{before[-1]}.{last}" if last.isdecimal() and before else last
