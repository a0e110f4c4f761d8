"""A transformer from one file: with diffusers' names, or in the layout of its release, as ComfyUI has it."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowfactory.errors import UserError
from flowfactory.models.building import build_unfilled
from flowfactory.models.checkpoint_files import check_file, reading
from flowfactory.models.loading_report import refuse_gaps
from flowfactory.stored_weights import WeightFile

REMEDY = "name a file of the transformer that model.path is of, whole"
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.")
"""What may stand before the names of a transformer's weights in a file that others have saved it in."""


def load_single_file(kind: Any, file: Path, folder: Path, dtype: torch.dtype, unused: Collection[str] = ()) -> nn.Module:
    """The module of ``kind``, of diffusers, as the config in ``folder`` has it, with the weights in ``file`` as ``dtype``.

    unused: see :func:`refuse_gaps`. UserError: the file is damaged, of no layout that diffusers converts, or not for that
    config; what does not fit is named.
    """
    source = f"model.weights: {file}"
    try:
        check_file(file)
    except UserError as error:
        raise UserError(f"model.weights: {error}") from error
    check_file(folder / "config.json")
    with reading(source):
        module = build_unfilled(kind, folder, dtype)
        own = module.state_dict()
        with WeightFile.find(file).opened() as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if packed := next((name for name, tensor in tensors.items() if not tensor.is_floating_point()), None):
        raise UserError(f"{source} holds {packed} of {tensors[packed].dtype}, which is packed; take floating-point weights")
    if adapter := next((name for name in tensors if ".lora_" in name), None):
        raise UserError(f"{source} holds adapters, such as {adapter}; name it as model.train.lora.from")
    found = _renamed(kind, tensors, own, source)
    fitting = {name: tensor for name, tensor in found.items() if name in own and tensor.shape == own[name].shape}
    told = {
        "mismatched_keys": [
            (name, found[name].shape, own[name].shape) for name in found if name in own and name not in fitting
        ],
        "unexpected_keys": [name for name in found if name not in own],
        "missing_keys": [name for name in own if name not in found],
        "error_msgs": [],
    }
    exact = kind._keep_in_fp32_modules or ()
    kept = [exact] if isinstance(exact, str) else exact
    rounded = {
        name: tensor.to(torch.float32 if set(kept) & set(name.split(".")) else dtype) for name, tensor in fitting.items()
    }
    module.load_state_dict(rounded, strict=False, assign=True)
    refuse_gaps(source, module, told, unused, REMEDY)
    module.register_to_config(_name_or_path=str(folder))  # type: ignore[operator]
    return module.eval()


def _renamed(kind: Any, tensors: Mapping[str, Tensor], own: Collection[str], source: str) -> Mapping[str, Tensor]:
    """``tensors`` by the names that the module has; as diffusers converts them where they have others."""
    for prefix in PREFIXES:
        bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        if len(bare) == len(tensors) and len(own & bare.keys()) > len(own) / 2:
            return bare
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    convert = SINGLE_FILE_LOADABLE_CLASSES.get(kind.__name__, {}).get("checkpoint_mapping_fn")
    if convert is None:
        raise UserError(
            f"{source} has other names than {kind.__name__} of diffusers, which converts none for it; convert it first"
        )
    named: dict[str, Any] = {"config": {}} if "config" in inspect.signature(convert).parameters else {}
    try:
        converted: Mapping[str, Tensor] = convert(checkpoint=dict(tensors), **named)
    except Exception as error:  # whatever a name that it does not expect leads to
        told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{source} is of no layout that diffusers converts for {kind.__name__} ({told})") from error
    return converted
