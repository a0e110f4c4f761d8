"""Modules of a checkpoint as its configs have them, without their weights; and which of their layers LoRA would adapt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from flowfactory.lora_targets import is_named, linear_endings, unadaptable
from flowfactory.models.building import build_on_meta
from flowfactory.models.checkpoint_files import reading
from flowfactory.models.library_imports import library_class
from flowfactory.models.pretrained import Pretrained
from flowfactory.suggestions import did_you_mean


def _layers(checkpoint: Pretrained, name: str) -> dict[str, nn.Module]:
    library, kind = checkpoint.settings[name]
    with reading(checkpoint.path):
        return dict(build_on_meta(library_class(library, kind), checkpoint.path, subfolder=name).named_modules())


def check_lora_targets(checkpoint: Pretrained, names: Iterable[str], targets: Sequence[str]) -> None:
    """Reads no weights. ValueError: of the parts ``names`` no layer has a name that ends in one of ``targets``, or has and
    cannot be adapted.
    """
    parts = [_layers(checkpoint, name) for name in names]
    for target in targets:
        if not any(is_named(layer, target) for layers in parts for layer in layers):
            endings = set().union(*map(linear_endings, parts))
            raise ValueError(f"model.train.lora.targets: no layer's name ends in {target!r}{did_you_mean(target, endings)}")
    for layers in parts:
        if why := unadaptable(layers, targets):
            raise ValueError(f"model.train.lora.targets: {why}")
