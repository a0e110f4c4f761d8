"""How to load what was exported: prose and code that run as they stand, in the exported folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from flowfactory.config.schema import RunConfig
from flowfactory.policy import lora
from flowfactory.runs.export.adapters import COMFYUI, PEFT
from flowfactory.runs.export.origin import Origin

HERE = 'folder = "."  # this folder, or its hub id once it is there'


def describe_use(config: RunConfig, origin: Origin, form: str, files: Mapping[str, Path]) -> str:
    """A paragraph and a block of code for weights in the format ``form``, with the file of each module that trained."""
    if form == COMFYUI:
        return _comfyui(list(files.values()))
    if config.model.train == "full":
        return _whole_pipeline(config, origin) if origin.pipeline else _module_alone(origin, files)
    if not origin.pipeline:
        return _adapted_module(origin, list(files))
    lines = _peft(list(files)) if form == PEFT else _diffusers(files, origin.loads_adapters())
    libraries = ["from peft import PeftModel"] if form == PEFT else []
    return _prose_of(origin) + _python(_base(config, origin, libraries) + lines)


def _base(config: RunConfig, origin: Origin, imports: list[str]) -> list[str]:
    """The lines that open what training began with."""
    where, comment, standard = json.dumps(origin.name, ensure_ascii=False), "", []
    if origin.package:
        standard = ["from importlib.resources import files"]
        where = f'str(files("{origin.package}").joinpath({", ".join(map(json.dumps, origin.inside))}))'
    elif not origin.hub:
        comment = "  # the folder that training began with"
    torch, given = _arguments(config, origin)
    head = [*standard, *([""] if standard and torch else []), *torch]
    opened = f"pipeline = DiffusionPipeline.from_pretrained({where}{given}){comment}"
    return [*head, *([""] if head else []), "from diffusers import DiffusionPipeline", *imports, "", HERE, opened]


def _arguments(config: RunConfig, origin: Origin) -> tuple[list[str], str]:
    """What else the pipeline is opened with, and the import for it: the run's precision, and the parts that it has not."""
    torch = ["import torch"] if config.training.precision == "bf16" else []
    given = [*(["torch_dtype=torch.bfloat16"] if torch else []), *(f"{name}=None" for name in origin.absent_parts())]
    return torch, "".join(f", {argument}" for argument in given)


def _prose_of(origin: Origin) -> str:
    return f"`files` finds the model in the installed package `{origin.package}`.\n\n" if origin.package else ""


def _diffusers(files: Mapping[str, Path], by_pipeline: bool) -> list[str]:
    if not by_pipeline:
        return [f'pipeline.{name}.load_lora_adapter(folder, weight_name="{file.as_posix()}")' for name, file in files.items()]
    # the file by its whole name: with subfolder, diffusers takes one of that name in a local folder itself
    return [
        "pipeline.load_lora_weights(folder)"
        if name == lora.FIRST
        else f'pipeline.load_lora_weights(folder, weight_name="{file.as_posix()}", load_into_{name}=True)'
        for name, file in files.items()
    ]


def _peft(modules: list[str]) -> list[str]:
    return [f"pipeline.{name} = {_peft_model(f'pipeline.{name}', name)}" for name in modules]


def _peft_model(module: str, name: str) -> str:
    place = "" if name == lora.FIRST else f', subfolder="{name}"'
    return f"PeftModel.from_pretrained({module}, folder{place})"


def _whole_pipeline(config: RunConfig, origin: Origin) -> str:
    torch, given = _arguments(config, origin)
    opened = f"pipeline = DiffusionPipeline.from_pretrained(folder{given})"
    return _python([*torch, *([""] if torch else []), "from diffusers import DiffusionPipeline", "", HERE, opened])


def _module_alone(origin: Origin, files: Mapping[str, Path]) -> str:
    """For a model that is no pipeline: its module is made by the plugin that has it."""
    lines = ["from safetensors.torch import load_file", ""]
    lines += [f'{name}.load_state_dict(load_file("{file.as_posix()}"))' for name, file in files.items()]
    return _of_the_plugin(origin, list(files)) + _python(lines)


def _adapted_module(origin: Origin, modules: list[str]) -> str:
    lines = ["from peft import PeftModel", "", HERE, *(f"{name} = {_peft_model(name, name)}" for name in modules)]
    return _of_the_plugin(origin, modules) + _python(lines)


def _of_the_plugin(origin: Origin, modules: list[str]) -> str:
    names = " and ".join(f"`{name}`" for name in modules)
    what = "the torch modules" if len(modules) > 1 else "the torch module"
    return (
        f"{code_span(origin.name)} is no diffusers pipeline but a model of a flowfactory plugin, and this folder holds what "
        f"was trained of it alone. {names} below: {what} that the plugin's `load` returns by that name.\n\n"
    )


def code_span(text: str) -> str:
    """``text`` as Markdown shows code; it cannot end it."""
    return f"`{' '.join(text.replace('`', '').split())}`"


def _comfyui(files: list[Path]) -> str:
    names = " and ".join(f"`{file}`" for file in files)
    which, place = ("each", ", behind the model of its own noise level") if len(files) > 1 else ("it", "")
    node = f"the node *LoraLoaderModelOnly* at strength 1{place}"
    return f"Put {names} into `models/loras` of ComfyUI, and load {which} with {node}."


def _python(lines: list[str]) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"
