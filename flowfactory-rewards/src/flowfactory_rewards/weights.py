"""Weights of pretrained models: read from a folder or the hub, all there, and frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from flowfactory import UserError


def from_pretrained(part: Any, path: str, **options: Any) -> Any:
    """``part.from_pretrained(path)``, of a class of transformers. UserError: its files are not there."""
    try:
        return part.from_pretrained(path, **options)
    except (OSError, ImportError, ValueError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error


def load_pretrained(model: Any, path: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The ``model``, a class of transformers, in ``path``, to score with. UserError: another is there, or not all of it."""
    from transformers import AutoConfig

    config = from_pretrained(AutoConfig, path)
    wanted = model.config_class.model_type
    if config.model_type != wanted:
        raise UserError(f"{path} holds a model of type {config.model_type!r}; this reward reads {wanted!r}")
    return freeze(from_pretrained(model, path, dtype=dtype, output_loading_info=True), path, device)


def from_state_dict(
    model: Any,
    config: Any,
    state: Mapping[str, Tensor],
    source: str,
    device: torch.device,
    dtype: torch.dtype,
    **options: Any,
) -> Any:
    """The ``model``, a class of transformers, with the weights ``state``, to score with. UserError: ``state`` lacks some."""
    options |= {"dtype": dtype, "output_loading_info": True}
    try:
        # without a path it is made without memory of its own, and takes these tensors
        loaded = model.from_pretrained(None, config=config, state_dict=dict(state), **options)
    except RuntimeError as error:
        raise UserError(f"{source} does not fit a {model.__name__}: {' '.join(str(error).split())}") from error
    return freeze(loaded, source, device)


def freeze(loaded: tuple[Any, Mapping[str, Any]], source: str, device: torch.device) -> Any:
    """The model of what transformers returns with loading info, to score with. UserError: ``source`` lacks weights."""
    model, told = loaded
    if missing := sorted(told["missing_keys"]):  # which are random now
        raise UserError(f"{source} lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]}")
    return model.eval().requires_grad_(False).to(device)


def read_tensors(path: str, file: str) -> dict[str, Any]:
    """What ``file`` in the folder or hub id ``path`` holds, on the CPU. UserError: no such file, or more than tensors in it."""
    place = Path(path) / file
    try:
        if not Path(path).is_dir():
            from huggingface_hub import hf_hub_download

            place = Path(hf_hub_download(path, file))
        if place.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: dict[str, Any] = load_file(place)
            return found
        found = torch.load(place, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"no file {file} in {path}: {' '.join(str(error).split())}") from error
    except UnpicklingError as error:
        raise UserError(f"{place} holds more than tensors and is not read: it could run code") from error
    return found


def count_parameters(path: str) -> int | None:
    """How many numbers the ``.safetensors`` in the folder or hub id ``path`` hold; None where they are not on this machine."""
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(path, "config.json")
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as held:
            count += sum(math.prod(held.get_slice(name).get_shape()) for name in held.keys())  # noqa: SIM118 it is no mapping
    return count or None


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What of ``state`` has names that begin with ``prefix``, under the rest of them."""
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}


def build_linear_layers(state: Mapping[str, Tensor], numbers: Sequence[int], source: str) -> list[nn.Linear]:
    """The layers ``0.weight``, ``0.bias`` and so on in ``state``, float32. UserError: it has layers of other ``numbers``."""
    found = sorted({int(name.split(".")[0]) for name in state})
    if found != [*numbers]:
        raise UserError(f"{source} has the layers {found} in its predictor; the released one has {[*numbers]}")
    layers = []
    for number in numbers:
        weight, bias = state[f"{number}.weight"], state[f"{number}.bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float32)
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer.requires_grad_(False))
    return layers


LINEAR_PREDICTOR = (0, 2, 4, 6, 7)
"""The layers of LAION's predictor and ImageReward's, which dropout alone stands between: with activations they are others."""
