"""The formats of adapters: diffusers', ComfyUI's and peft's names for the same numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from flowfactory.config.component import ModelConfig
from flowfactory.config.warm_start import PEFT_FILE
from flowfactory.errors import UserError
from flowfactory.models.adapter_layouts import comfyui_name
from flowfactory.models.family_config import FamilyConfig
from flowfactory.policy import lora
from flowfactory.runs.checkpoints.stored_modules import StoredModule, write_adapters
from flowfactory.runs.checkpoints.tensor_file import write_tensors
from flowfactory.runs.export.origin import Origin

DIFFUSERS, COMFYUI, PEFT = FORMATS = ("diffusers", "comfyui", "peft")
_IN_ANOTHER = f"write --format {DIFFUSERS}"


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
        if isinstance(model, FamilyConfig):
            lacking = f"the family of {name} says not what ComfyUI calls its layers, which takes Family.comfyui of its package"
            raise UserError(f"--format {asked}: {lacking}; write --format {other}")
        raise UserError(f"--format {asked}: {name} is no diffusers pipeline; write --format {other}")
    return asked


def write_formatted(
    modules: Sequence[StoredModule], folder: Path, chosen: str, model: ModelConfig, origin: Origin, title: str
) -> list[Path]:
    """Write the adapters of ``modules`` in the ``chosen`` format; the file of each module, relative to ``folder``.

    ``title`` is the stem of ComfyUI's files, which lie in one folder with those of others. UserError: ComfyUI has no name for
    one of the layers, or it is an embedding.
    """
    if chosen == COMFYUI:
        return _write_comfyui(modules, folder, model, title)
    if chosen == PEFT:
        return [_write_peft(module, folder, origin) for module in modules]
    return [file.relative_to(folder) for file in write_adapters(modules, folder)]


def _write_comfyui(modules: Sequence[StoredModule], folder: Path, model: ModelConfig, title: str) -> list[Path]:
    assert isinstance(model, FamilyConfig)
    family, parts = model.family, model.checkpoint.parts
    several = sum(bool(parts.get(name)) for name in family.transformers) > 1
    experts = dict(zip(family.transformers, family.experts, strict=True)) if several else {}
    files = []
    for module in modules:
        if embeddings := [name for entry in module.folded_entries() if (name := entry.name).endswith(".lora_embedding_A")]:
            layer = embeddings[0].removesuffix(".lora_embedding_A")
            raise UserError(f"--format {COMFYUI}: ComfyUI reads no adapter of an embedding, as {layer} is; {_IN_ANOTHER}")
        file = Path("_".join(filter(None, (title, experts.get(module.name)))) + ".safetensors")
        _write(module, folder / file, lambda layer: _comfyui_layer(layer, model))
        files.append(file)
    return files


def _write(module: StoredModule, file: Path, rename: Callable[[str], str]) -> None:
    """Write its adapters, whose layers are called as ``rename`` says."""
    entries = module.folded_entries()
    renamed = {}
    for entry in entries:
        layer, factor = re.fullmatch(r"(.+)\.(lora_.+)", entry.name).groups()  # type: ignore[union-attr]
        renamed[entry.name] = f"{rename(layer)}.{factor}"
    named = [entry._replace(name=renamed[entry.name]) for entry in entries]
    write_tensors(file, named, module.folded(entries), {"format": "pt"})


def _comfyui_layer(layer: str, model: ModelConfig) -> str:
    """ComfyUI's name of ``layer``; it reads lora_A and lora_B, and takes alpha for the rank."""
    name = comfyui_name(layer, _comfyui_names(model))
    if name is None:
        raise UserError(f"--format {COMFYUI}: ComfyUI has no name for {layer}; {_IN_ANOTHER}")
    return name


def _comfyui_names(model: ModelConfig) -> tuple[tuple[str, str], ...]:
    return model.family.comfyui if isinstance(model, FamilyConfig) else ()


def _write_peft(module: StoredModule, folder: Path, origin: Origin) -> Path:
    """``PeftModel.from_pretrained`` of the module reads it: of a second transformer in a folder of its own."""
    place = lora.adapter_path(folder, module.name).parent
    place.mkdir(exist_ok=True)
    _write(module, place / PEFT_FILE, lambda layer: f"base_model.model.{layer}")
    assert module.exported is not None
    config = module.exported.folded_config()
    config.inference_mode = True
    config.base_model_name_or_path = origin.name if origin.hub else None
    config.save_pretrained(str(place))
    return (place / PEFT_FILE).relative_to(folder)
