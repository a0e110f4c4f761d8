"""Low-rank adapters: put on, switched off, and as other programs know them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from flowfactory.config.warm_start import DIFFUSERS_FILE as FILE
from flowfactory.config.warm_start import FIRST as FIRST
from flowfactory.errors import RunError
from flowfactory.lora_targets import is_named, linear_endings, unadaptable
from flowfactory.policy.merging import Merging
from flowfactory.postponed_imports import postponed_imports

if TYPE_CHECKING:
    from peft import LoraConfig as PeftConfig

    from flowfactory.config.component import LoraConfig

ADAPTER, BASE = "default", "base"
"""What peft calls the adapters that train; and checkpoints those that are a part of the frozen weights."""


def add_adapters(
    module: nn.Module, config: LoraConfig | Adapters, targets: Sequence[str], seed: int, merging: Merging | None = None
) -> list[str]:
    """The names of the layers that got an adapter; the rest of ``module`` is frozen.

    The adapters are float32 whatever the layer's dtype, and their start depends on ``seed`` alone. ``merging`` tells them
    when they may be merged; never where it is left out. RunError: no layer's name ends in a target, or
    one does that cannot be adapted.
    """
    # peft would import bitsandbytes to find out that no layer is one of its, and with transformers losses that take SciPy
    with postponed_imports("bitsandbytes", "scipy"):
        return _add_adapters(module, config, targets, seed, merging)


def _add_adapters(
    module: nn.Module, config: LoraConfig | Adapters, targets: Sequence[str], seed: int, merging: Merging | None
) -> list[str]:
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    from flowfactory.policy.adapted_linear import adapt_linear_layers

    module.requires_grad_(False)
    wanted = list(targets if config.targets is None else config.targets)
    layers = dict(module.named_modules())  # before peft's own are among them
    if unmatched := [target for target in config.targets or () if not any(is_named(name, target) for name in layers)]:
        raise RunError(_no_layer(layers, unmatched))
    peft_config = _peft_config(config.rank, config.alpha, wanted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(peft_config, module, ADAPTER)
        except ValueError as error:
            raise RunError(_why_not(layers, wanted, error)) from error
    adapted = {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
    for layer in adapted.values():  # to float32 and, by autocast, back again: the same numbers, and three times the traffic
        layer.cast_input_dtype_enabled = False
    found = list(adapted)
    if not found:
        raise RunError(_no_layer(layers, wanted))
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    adapt_linear_layers(module, merging or Merging())
    # what diffusers' own add_adapter leaves behind, and its save and fuse methods look for
    module.peft_config = {ADAPTER: peft_config}  # type: ignore[assignment]
    module._hf_peft_config_loaded = True  # type: ignore[assignment]
    return found


def _peft_config(rank: int, alpha: float, targets: Iterable[str]) -> PeftConfig:
    from peft import LoraConfig as PeftConfig

    return PeftConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(targets),
        lora_dropout=0.0,
        init_lora_weights="gaussian",
    )


def _why_not(layers: Mapping[str, nn.Module], targets: Sequence[str], error: ValueError) -> str:
    """Why adapters did not go on ``layers``, of which peft says no more than ``error``."""
    if not any(is_named(name, target) for name in layers for target in targets):
        return _no_layer(layers, targets)
    return f"model.train.lora.targets: {unadaptable(layers, targets) or f'{error}; name other layers'}"


def _no_layer(layers: Mapping[str, nn.Module], targets: Sequence[str]) -> str:
    return (
        f"LoRA found no layer whose name ends in {', '.join(targets)}, and nothing would train there; "
        f"set model.train.lora.targets to some of {', '.join(sorted(linear_endings(layers)))}"
    )


@contextmanager
def adapters_disabled(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it the adapters of ``modules`` add nothing: the weights are those that new adapters started from."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    every = list(modules)
    layers = [layer for module in every for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    trains = [parameter for module in every for parameter in module.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter in trains:  # enable_adapters freezes on the way off
            parameter.requires_grad_(True)


def adapter_path(folder: Path, module: str) -> Path:
    """The file of a module's adapters: of a pipeline's second transformer in a folder of its own, where diffusers looks."""
    return (folder if module == FIRST else folder / module) / FILE


class Adapters(NamedTuple):
    """What adapters of a module have to be told with: their rank and alpha, and endings of the names of their layers."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def folded_config(self) -> PeftConfig:
        """What peft has to know of adapters that :meth:`fold` was called on: alpha is the rank."""
        return _peft_config(self.rank, self.rank, self.targets)

    def fold(self, name: str, factor: Tensor) -> Tensor:
        """A ``factor``, named by :func:`exported_name`, so that the product of the two is what the adapter adds.

        alpha / rank is multiplied into the second of them, since not every loader reads it elsewhere.
        """
        return factor * (self.alpha / self.rank) if is_second(name) else factor


def is_second(name: str) -> bool:
    """Whether a parameter, or a tensor of an export, is the second of an adapter's two factors, which begins at zero."""
    return ".lora_B." in name or ".lora_embedding_B" in name


def adapters_of(module: nn.Module) -> Adapters:
    """What :func:`add_adapters` put on ``module``."""
    config: PeftConfig = module.peft_config[ADAPTER]  # type: ignore[index]
    return Adapters(config.r, float(config.lora_alpha), tuple(sorted(config.target_modules)))


def exported_name(parameter: str, adapter: str = ADAPTER) -> str | None:
    """``parameter`` without the name of the ``adapter``, which is peft's. None: it is none of its.

    ``<layer>.lora_A.weight`` [rank, in, ...] and ``<layer>.lora_B.weight`` [out, rank, ...]; of an embedding
    ``<layer>.lora_embedding_A`` [rank, entries] and ``<layer>.lora_embedding_B`` [out, rank].
    """
    found = re.fullmatch(rf"(.+\.lora_[AB])\.{adapter}(\.weight)|(.+\.lora_embedding_[AB])\.{adapter}", parameter)
    return "".join(filter(None, found.groups())) if found else None


def adapter_header(adapters: Adapters) -> dict[str, str]:
    """The metadata of the file that ``pipeline.load_lora_weights`` reads them from."""
    config = adapters.folded_config().to_dict()
    metadata = {f"{FIRST}.{key}": sorted(v) if isinstance(v, set) else v for key, v in config.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, default=str, sort_keys=True)}
