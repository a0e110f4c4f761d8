"""Fully trained modules in the files that diffusers reads, one tensor after the other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from flowfactory.atomic_files import write_json_atomically
from flowfactory.runs.checkpoints.stored_modules import StoredModule
from flowfactory.runs.checkpoints.tensor_file import Entry, in_order, write_tensors

PATTERN = "diffusion_pytorch_model{suffix}.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
MAX_SHARD_SIZE = "10GB"
"""Of a file, as diffusers' own save_pretrained has it."""


def write_whole(
    module: StoredModule, folder: Path, dtype: torch.dtype, exact: Sequence[str], max_shard_size: int | str | None
) -> list[Path]:
    """Write ``module`` in ``dtype`` into a folder of its name; its files, relative to ``folder``.

    Tensors with one of ``exact`` in their names are not rounded. Files have at most ``max_shard_size``, such as 10GB, and an
    index beside them where they are several; None: one file.
    """

    def rounded(entry: Entry) -> Entry:
        free = entry.dtype.is_floating_point and not set(exact) & set(entry.name.split("."))
        return entry._replace(dtype=dtype) if free else entry

    entries = {entry.name: entry for entry in map(rounded, module.entries())}
    split = split_state_dict_into_shards_factory(
        entries,
        get_storage_size=lambda entry: entry.bytes,
        filename_pattern=PATTERN,
        max_shard_size=max_shard_size or sys.maxsize,
    )
    place = folder / module.name
    place.mkdir(exist_ok=True)
    for file, names in split.filename_to_tensors.items():
        held = in_order(entries[name] for name in names)
        tensors = zip(held, module.read(entry.name for entry in held), strict=True)
        write_tensors(place / file, held, (tensor.to(entry.dtype) for entry, tensor in tensors), {"format": "pt"})
    if split.is_sharded:
        write_json_atomically(place / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    return [Path(module.name) / file for file in split.filename_to_tensors]
