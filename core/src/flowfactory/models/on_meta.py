"""Modules of a checkpoint as its configs have them, without their weights; and which of their layers LoRA would adapt."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from flowfactory.models.building import build_on_meta
from flowfactory.models.checkpoint_files import reading
from flowfactory.models.library_imports import library_class
from flowfactory.models.pretrained import Pretrained
from flowfactory.suggestions import did_you_mean


def _layers(checkpoint: Pretrained, name: str) -> set[str]:
    library, kind = checkpoint.settings[name]
    with reading(checkpoint.path):
        module = build_on_meta(library_class(library, kind), checkpoint.path, subfolder=name)
    return {layer for layer, part in module.named_modules() if isinstance(part, nn.Linear)}


def check_lora_targets(checkpoint: Pretrained, names: Iterable[str], targets: Iterable[str]) -> None:
    """ValueError: no linear layer of the parts ``names`` has a name that ends in one of ``targets``. Reads no weights."""
    layers = set().union(*(_layers(checkpoint, name) for name in names))
    for target in targets:
        if not any(layer == target or layer.endswith(f".{target}") for layer in layers):
            endings = {_ending(layer) for layer in layers}
            raise ValueError(f"model.train.lora.targets: no layer's name ends in {target!r}{did_you_mean(target, endings)}")


def _ending(layer: str) -> str:
    """The end of a layer's name that says which it is: ``to_q``, ``to_out.0``."""
    *before, last = layer.rsplit(".", 2)
    return f"{before[-1]}.{last}" if last.isdecimal() and before else last
