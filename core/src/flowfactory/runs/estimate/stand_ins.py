"""Stand-ins for what a traced run has: checkpoints without their weights, and conditions of a few prompts for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from flowfactory.canvas import Canvas
from flowfactory.errors import UserError
from flowfactory.models.pretrained import Pretrained
from flowfactory.runs.estimate.weights import tensor_bytes
from flowfactory.types import Conditions, Prompt


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


class TracedConditions:
    """The conditions of a few prompts, which stand for those of all: the part of an EncodeCache that drawing needs."""

    def __init__(self, encode: Callable[[Sequence[Prompt], Canvas], Iterable[Mapping[str, Tensor]]]) -> None:
        self._encode = encode
        self._known: dict[Canvas, list[Mapping[str, Tensor]]] = {}

    def prepare(self, wanted: Sequence[Prompt], canvas: Canvas) -> int:
        """Encode ``wanted`` for ``canvas``."""
        different = list(dict.fromkeys((prompt.text, prompt.media) for prompt in wanted))
        first = {(prompt.text, prompt.media): prompt for prompt in wanted}
        self._known[canvas] = list(self._encode([first[key] for key in different], canvas))
        return len(different)

    def conditions(self, wanted: Sequence[Prompt], canvas: Canvas, negative: Sequence[Prompt] | None = None) -> Conditions:
        """One entry a prompt, the same for the same prompt."""
        known = self._known.get(canvas) or next(iter(self._known.values()))
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompt.index for prompt in wanted))}
        entries = tuple(known[places[prompt.index] % len(known)] for prompt in wanted)
        return Conditions(entries, None if negative is None else Conditions((known[-1],) * len(entries)))

    @property
    def each(self) -> float:
        """Bytes of one prompt's, in the mean."""
        entries = [entry for known in self._known.values() for entry in known]
        return sum(tensor_bytes(tensor) for entry in entries for tensor in entry.values()) / max(1, len(entries))
