"""Exported adapters, loaded by everything that they are exported for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfyui
from families import relative_difference
from peft import PeftModel
from safetensors.torch import load_file
from saved import stored
from torch import Tensor

from flowfactory import Policy
from flowfactory.runs.export.adapters import write_formatted
from flowfactory.runs.export.origin import find_origin

FORMATS = {"diffusers": "diffusers", "a state dict": "diffusers", "comfyui": "comfyui", "peft": "peft"}


def check_every_loader(
    policy: Policy,
    model: Any,
    kind: str | None,
    ours: Tensor,
    open_pipeline: Callable[[], Any],
    draw: Callable[[Any], Tensor],
    folder: Path,
) -> None:
    """Each loader's pipeline draws ``ours``, what the trained adapters of ``policy`` draw, and something else before.

    ``kind`` is a key of the tables in :mod:`comfyui`; None: ComfyUI has no such model, and nothing is exported for it.
    """
    for loader, form in FORMATS.items():
        if kind is None and form == "comfyui":
            continue
        out = folder / loader
        out.mkdir()
        with stored(policy) as modules:
            files = write_formatted(modules, out, form, model, find_origin(model), "adapters")
        pipeline = open_pipeline()
        assert relative_difference(ours, draw(pipeline)) > 1e-2, "the adapters change nothing that could be compared"
        for name, file in zip(policy.modules, files, strict=True):
            load_adapters(loader, out / file, pipeline, name, kind)
        assert relative_difference(ours, draw(pipeline)) < 1e-4, loader


def load_adapters(loader: str, file: Path, pipeline: Any, name: str, kind: str | None) -> None:
    """Load ``file`` into the transformer ``name`` of ``pipeline``."""
    second = {} if name == "transformer" else {f"load_into_{name}": True}
    if loader == "diffusers":
        pipeline.load_lora_weights(file.parent, **second)
    elif loader == "a state dict":
        pipeline.load_lora_weights(load_file(file), **second)
    elif loader == "comfyui":
        assert kind is not None
        comfyui.load(file, getattr(pipeline, name), kind)
    else:
        setattr(pipeline, name, PeftModel.from_pretrained(getattr(pipeline, name), file.parent))
