"""Adapters in the layouts of other programs, such as Kohya's and ComfyUI's, as diffusers converts them."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Names = tuple[tuple[str, str], ...]
"""ComfyUI's of the layers of a family: see :class:`.family.Family`."""


def comfyui_name(layer: str, names: Names) -> str | None:
    """What a family's ``names`` make of a layer; None: none of them matches it."""
    for pattern, name in names:
        if found := re.fullmatch(pattern, layer):
            return found.expand(name)
    return None


def read_adapters(
    names: Names, transformers: Mapping[str, nn.Module], pipeline: Any, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """``tensors`` of another program's adapters, by diffusers' names: ComfyUI's ``names``, else as it converts.

    ValueError: see :func:`convert_adapters`.
    """
    layers = dict.fromkeys(name for module in transformers.values() for name, _ in module.named_modules())
    ours = {theirs: layer for layer in layers if (theirs := comfyui_name(layer, names))}
    parts = {key: re.split(r"\.(?=lora_|lora\.|alpha$)", key, maxsplit=1) for key in tensors}
    if all(layer in ours for layer, *_ in parts.values()):
        return {".".join(("transformer", ours[layer], *rest)): tensors[key] for key, (layer, *rest) in parts.items()}
    return convert_adapters(pipeline, tensors)


def convert_adapters(pipeline: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` by the names that ``pipeline``, a class of diffusers, has for its own; alphas too, where it keeps them.

    ValueError: diffusers knows no such layout, or would leave something out; one sentence.
    """
    if not hasattr(pipeline, "lora_state_dict"):
        raise ValueError(f"{pipeline.__name__} of diffusers reads no adapters; give them the names of its layers")
    from diffusers.utils import convert_unet_state_dict_to_peft

    keeps_alphas = "return_alphas" in inspect.signature(pipeline.lora_state_dict).parameters
    try:
        with _nothing_left_out():
            found = pipeline.lora_state_dict(dict(tensors), **({"return_alphas": True} if keeps_alphas else {}))
    except ValueError:
        raise
    except Exception as error:  # its conversions raise whatever a name that they do not expect leads to
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"diffusers cannot convert it for {pipeline.__name__} ({type(error).__name__}: {told})") from error
    converted, alphas = found if keeps_alphas else (found, None)
    named = dict(converted)
    if named and not any(".lora_A" in key for key in named):
        named = convert_unet_state_dict_to_peft(named)
    return named | dict(alphas or {})


@contextmanager
def _nothing_left_out() -> Iterator[None]:
    """Within it what diffusers only warns of is a ValueError: names that its conversion passes over."""
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(" ".join(record.getMessage().split()))

    logger, listener = logging.getLogger("diffusers"), Listener(logging.WARNING)
    kept, propagates = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [listener], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = kept, propagates
    if told:
        raise ValueError(told[0][:300])
