"""The formats of adapters: diffusers', ComfyUI's and peft's names for the same numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from flowfactory.config.component import ModelConfig
from flowfactory.errors import UserError
from flowfactory.models.family import FamilyConfig
from flowfactory.policy import lora
from flowfactory.policy.policy import Policy
from flowfactory.runs.export.origin import Origin

DIFFUSERS, COMFYUI, PEFT = FORMATS = ("diffusers", "comfyui", "peft")
PEFT_FILE = "adapter_model.safetensors"


def choose_format(asked: str | None, model: ModelConfig, origin: Origin) -> str:
    """The format that is meant: diffusers' where diffusers opens the model, else peft's, unless one was ``asked`` for.

    UserError: there is none of that name, or the model has nothing in that format.
    """
    if asked is not None and asked not in FORMATS:
        raise UserError(f"--format {asked}: write one of {', '.join(FORMATS)}")
    name = getattr(model, "name", origin.name)
    if model.train == "full":
        if asked in (COMFYUI, PEFT):
            raise UserError(f"--format {asked} is for adapters, and this run trained all weights; leave it out")
        if asked and not origin.pipeline:
            raise UserError(f"--format {asked}: {name} is no diffusers pipeline; leave it out, which writes its weights alone")
        return DIFFUSERS
    if asked is None:
        return DIFFUSERS if origin.pipeline else PEFT
    if asked == DIFFUSERS and not origin.pipeline:
        raise UserError(f"--format {asked}: {name} is no diffusers pipeline; write --format {PEFT}")
    if asked == COMFYUI and not _comfyui_names(model):
        other = DIFFUSERS if origin.pipeline else PEFT
        raise UserError(f"--format {asked}: ComfyUI has no model like {name}; write --format {other}")
    return asked


def write_adapters(policy: Policy, folder: Path, chosen: str, model: ModelConfig, origin: Origin, title: str) -> list[Path]:
    """Write the present adapters of ``policy`` in the ``chosen`` format; the file of each module, relative to ``folder``.

    ``title`` is the stem of ComfyUI's files, which lie in one folder with those of others. UserError: ComfyUI has no name for
    one of the layers.
    """
    if chosen == COMFYUI:
        return _write_comfyui(policy, folder, model, title)
    if chosen == PEFT:
        return [_write_peft(module, name, folder, origin) for name, module in policy.modules.items()]
    lora.save_adapters(policy.modules, folder)
    return [lora.adapter_path(folder, name).relative_to(folder) for name in policy.modules]


def _write_comfyui(policy: Policy, folder: Path, model: ModelConfig, title: str) -> list[Path]:
    assert isinstance(model, FamilyConfig)
    experts = dict(zip(model.family.transformers, model.family.experts, strict=True)) if policy.has_experts else {}
    states = {
        "_".join(filter(None, (title, experts.get(name)))) + ".safetensors": _rename(lora.folded_adapters(module), model)
        for name, module in policy.modules.items()
    }
    for file, state in states.items():
        save_file(state, folder / file, metadata={"format": "pt"})
    return [Path(file) for file in states]


def _rename(state: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """``state`` by ComfyUI's names of the layers; it reads lora_A and lora_B, and takes alpha for the rank."""
    renamed = {}
    for key, value in state.items():
        layer, factor = re.fullmatch(r"(.+)\.(lora_[AB]\.weight)", key).groups()  # type: ignore[union-attr]
        name = comfyui_name(layer, _comfyui_names(model))
        if name is None:
            raise UserError(f"--format {COMFYUI}: ComfyUI has no name for {layer}; write --format {DIFFUSERS}")
        renamed[f"{name}.{factor}"] = value
    return renamed


def comfyui_name(layer: str, names: tuple[tuple[str, str], ...]) -> str | None:
    """What a family's ``names`` make of a layer; None: none of them matches it."""
    for pattern, name in names:
        if found := re.fullmatch(pattern, layer):
            return found.expand(name)
    return None


def _comfyui_names(model: ModelConfig) -> tuple[tuple[str, str], ...]:
    return model.family.comfyui if isinstance(model, FamilyConfig) else ()


def _write_peft(module: nn.Module, name: str, folder: Path, origin: Origin) -> Path:
    """``PeftModel.from_pretrained`` of ``module`` reads it: of a second transformer in a folder of its own."""
    place = lora.adapter_path(folder, name).parent
    place.mkdir(exist_ok=True)
    state = {f"base_model.model.{key}": value for key, value in lora.folded_adapters(module).items()}
    save_file(state, place / PEFT_FILE, metadata={"format": "pt"})
    config = lora.folded_config(module)
    config.inference_mode = True
    config.base_model_name_or_path = origin.name if origin.hub else None
    config.save_pretrained(str(place))
    return (place / PEFT_FILE).relative_to(folder)
