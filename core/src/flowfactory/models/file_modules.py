"""Modules of diffusers whose weights stay in their files, with what ``from_pretrained`` would say of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowfactory.models.building import build_unfilled
from flowfactory.stored_weights import StoredWeight, WeightFile, stand_in


def can_stay(kind: Any, files: Sequence[Path]) -> bool:
    """Whether weights of the class ``kind`` in ``files`` can be read one at a time: of diffusers, in safetensors."""
    return hasattr(kind, "load_config") and all(file.suffix == ".safetensors" for file in files)


def leave_in_files(
    kind: Any, folder: Path, files: Sequence[Path], dtype: torch.dtype
) -> tuple[nn.Module, dict[str, list[Any]]]:
    """What ``kind.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)`` gives, with no number of it read.

    Parameters are stand-ins with the dtypes that they have there, until :func:`flowfactory.stored_weights.place`; buffers have
    their numbers.
    """
    module = build_unfilled(kind, folder, dtype)
    own, exact = module.state_dict(), kind._keep_in_fp32_modules or ()
    exact = [exact] if isinstance(exact, str) else exact
    known: set[str] = set()
    spare: list[str] = []
    told: dict[str, list[Any]] = {"mismatched_keys": [], "error_msgs": []}
    for path in files:
        file = WeightFile.find(path)
        with file.opened() as tensors:
            for name in tensors.keys():  # noqa: SIM118 — it is no mapping
                known.add(name)
                if name not in own:
                    spare.append(name)
                    continue
                found = tensors.get_tensor(name)
                if found.shape != own[name].shape:
                    told["mismatched_keys"].append((name, found.shape, own[name].shape))
                    continue
                kept = any(part in exact for part in name.split("."))
                rounded = (torch.float32 if kept else dtype) if found.is_floating_point() else found.dtype
                _put(module, name, StoredWeight(file, name), found, rounded)
    ignored = kind._keys_to_ignore_on_load_unexpected or ()
    told["unexpected_keys"] = [name for name in spare if not any(re.search(pattern, name) for pattern in ignored)]
    told["missing_keys"] = [name for name in own if name not in known]
    module.register_to_config(_name_or_path=folder)  # type: ignore[operator]
    return module.eval(), told


def _put(module: nn.Module, name: str, stored: StoredWeight, found: Tensor, dtype: torch.dtype) -> None:
    path, _, key = name.rpartition(".")
    part = module.get_submodule(path)
    if (parameter := part._parameters.get(key)) is not None:
        part._parameters[key] = stand_in(stored, parameter, dtype)
    else:
        part._buffers[key] = found.to(dtype, copy=True)  # a view would keep the whole file mapped
