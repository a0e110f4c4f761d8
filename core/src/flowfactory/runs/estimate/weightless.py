"""Checkpoints opened without their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from flowfactory.errors import UserError
from flowfactory.models.pretrained import Pretrained


class Weightless:
    """Within it checkpoints are opened without their weights: ``opened`` are the modules by their part's name, on "meta"."""

    def __init__(self) -> None:
        self.opened: dict[str, nn.Module] = {}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        whole = Pretrained.open

        def open(checkpoint: Pretrained, names: Iterable[str], dtypes: Mapping[str, torch.dtype], **given: Any) -> Any:
            return self._pipeline(checkpoint, set(names), dtypes, given)

        setattr(Pretrained, "open", open)  # noqa: B010
        try:
            yield
        finally:
            setattr(Pretrained, "open", whole)  # noqa: B010

    def _pipeline(self, checkpoint: Pretrained, names: set[str], dtypes: Mapping[str, torch.dtype], given: Any) -> Any:
        settings = {key: value for key, value in checkpoint.settings.items() if not key.startswith("_")}
        parts = dict.fromkeys(checkpoint.parts) | {key: value for key, value in settings.items() if not isinstance(value, list)}
        for name, there in checkpoint.parts.items():
            if there and name in names and name not in given:
                parts[name] = self._part(checkpoint, name, dtypes.get(name, dtypes["default"]))
        return getattr(import_module("diffusers"), checkpoint.settings["_class_name"])(**(parts | given))

    def _part(self, checkpoint: Pretrained, name: str, dtype: torch.dtype) -> Any:
        library, kind = checkpoint.settings[name]
        made = getattr(import_module(library), kind)
        try:
            if not issubclass(made, nn.Module):
                return made.from_pretrained(checkpoint.path, subfolder=name)
            if hasattr(made, "load_config"):
                config = made.load_config(checkpoint.path, subfolder=name)
                build: Callable[[Any], nn.Module] = made.from_config
            else:
                config, build = made.config_class.from_pretrained(checkpoint.path, subfolder=name), made
        except (OSError, ImportError) as error:
            raise UserError(f"model.path {checkpoint.path}: {' '.join(str(error).split())}") from error
        with torch.device("meta"):
            module = build(config)
        # what from_pretrained of diffusers, or of transformers, does not round to bf16
        kept = "_keep_in_fp32_modules" if hasattr(made, "load_config") else "_keep_in_fp32_modules_strict"
        exact = getattr(module, kept, None) or ()
        for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point() and not any(part in exact for part in key.split(".")):
                tensor.data = tensor.data.to(dtype)
        setattr(module, "_apply", partial(replace_tensors, module))  # noqa: B010
        self.opened[name] = module
        return module


def replace_tensors(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """What ``to`` and ``float`` do to ``module``; PyTorch's own way cannot do it to fake tensors twice."""
    made: dict[int, nn.Parameter] = {}  # by what was there: tied weights stay tied
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) not in made:
                changed = change(parameter)
                same = changed is parameter
                made[id(parameter)] = parameter if same else nn.Parameter(changed.detach(), parameter.requires_grad)
            if parameter is not None:
                part._parameters[name] = made[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = change(buffer)
    return module
