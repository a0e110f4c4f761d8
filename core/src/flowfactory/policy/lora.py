"""Low-rank adapters: put on, switched off, saved as diffusers loads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flowfactory.distributed.sharding import full_tensor
from flowfactory.errors import RunError
from flowfactory.policy.merging import Merging

if TYPE_CHECKING:
    from peft import LoraConfig as PeftConfig

    from flowfactory.config.component import LoraConfig

ADAPTER = "default"
FILE = "pytorch_lora_weights.safetensors"
FIRST = "transformer"


def add_adapters(
    module: nn.Module, config: LoraConfig, targets: Sequence[str], seed: int, merging: Merging | None = None
) -> list[str]:
    """The names of the layers that got an adapter; the rest of ``module`` is frozen.

    The adapters are float32 whatever the layer's dtype, and their start depends on ``seed`` alone. ``merging`` tells them
    when they may be merged; never where it is left out. RunError: no layer's name ends in a target.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    from flowfactory.policy.adapted_linear import adapt_linear_layers

    module.requires_grad_(False)
    wanted = list(targets if config.targets is None else config.targets)
    names = [name for name, _ in module.named_modules()]
    if unmatched := [t for t in config.targets or () if not any(name == t or name.endswith(f".{t}") for name in names)]:
        raise RunError(_no_layer(module, unmatched))
    peft_config = PeftConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=wanted, lora_dropout=0.0, init_lora_weights="gaussian"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(peft_config, module, ADAPTER)
        except ValueError as error:  # peft's own words for targets that match nothing
            raise RunError(_no_layer(module, wanted)) from error
    adapted = {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
    for layer in adapted.values():  # to float32 and, by autocast, back again: the same numbers, and three times the traffic
        layer.cast_input_dtype_enabled = False
    found = list(adapted)
    if not found:
        raise RunError(_no_layer(module, wanted))
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    adapt_linear_layers(module, merging or Merging())
    # what diffusers' own add_adapter leaves behind, and its save and fuse methods look for
    module.peft_config = {ADAPTER: peft_config}  # type: ignore[assignment]
    module._hf_peft_config_loaded = True  # type: ignore[assignment]
    return found


def _no_layer(module: nn.Module, targets: Sequence[str]) -> str:
    linear = sorted({name.rsplit(".", 1)[-1] for name, layer in module.named_modules() if isinstance(layer, nn.Linear)})
    return (
        f"LoRA found no layer whose name ends in {', '.join(targets)}, and nothing would train there; "
        f"set model.train.lora.targets to some of {', '.join(linear)}"
    )


@contextmanager
def adapters_disabled(module: nn.Module) -> Iterator[None]:
    """Within it the adapters of ``module`` add nothing: the weights are those that training started from."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    trains = [parameter for parameter in module.parameters() if parameter.requires_grad]
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


def folded_adapters(module: nn.Module) -> dict[str, Tensor]:
    """``<layer>.lora_A.weight`` [rank, in] and ``<layer>.lora_B.weight`` [out, rank], in host memory.

    Their product is what the adapter adds: alpha / rank is multiplied into lora_B, since not every loader reads it elsewhere.
    Where they are sharded all ranks call it.
    """
    from peft import get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    scales = {name: layer.scaling[ADAPTER] for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
    found = {}
    for key, value in get_peft_model_state_dict(module, adapter_name=ADAPTER).items():
        layer, is_up, _ = key.rpartition(".lora_B.")
        whole = full_tensor(value.detach()).cpu()
        found[key] = (whole * scales[layer] if is_up else whole).contiguous()
    return found


def folded_config(module: nn.Module) -> PeftConfig:
    """What peft has to know of :func:`folded_adapters`: alpha is the rank."""
    trained: PeftConfig = module.peft_config[ADAPTER]  # type: ignore[index]
    folded = copy(trained)
    folded.lora_alpha = trained.r
    return folded


def save_adapters(modules: Mapping[str, nn.Module], folder: Path, leads: bool = True) -> None:
    """Write the :func:`folded_adapters` as ``pipeline.load_lora_weights`` reads them, each module's at its path.

    Where they are sharded all ranks call it, and the one that ``leads`` writes.
    """
    # all of them first: a disk that fails the leading rank must not leave the others waiting for it
    states = {name: folded_adapters(module) for name, module in modules.items()}
    for name, state in states.items() if leads else ():
        # diffusers wants this prefix for whichever transformer it loads them into
        weights = {f"{FIRST}.{key}": value for key, value in state.items()}
        config = folded_config(modules[name]).to_dict()
        metadata = {f"{FIRST}.{key}": sorted(v) if isinstance(v, set) else v for key, v in config.items()}
        header = {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, default=str, sort_keys=True)}
        file = adapter_path(folder, name)
        file.parent.mkdir(exist_ok=True)
        save_file(weights, file, metadata=header)
