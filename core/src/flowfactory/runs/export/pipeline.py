"""Fully trained transformers made into a whole pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from flowfactory.models.checkpoint_files import read_settings
from flowfactory.runs.export.origin import INDEX

LICENCES = ("LICENSE", "LICENCE", "NOTICE")


def complete_pipeline(folder: Path, path: str, trained: list[str], dtype: torch.dtype) -> None:
    """Make a pipeline of ``folder``, which holds the ``trained`` transformers: the rest is copied from that at ``path``.

    A hub id's is where it was downloaded to.
    """
    import diffusers

    source = _local(path)
    index = read_settings(source / INDEX)
    for name in trained:
        kind = getattr(diffusers, index[name][1])
        whole = kind.from_pretrained(folder / name, torch_dtype=dtype)
        shutil.rmtree(folder / name)
        whole.save_pretrained(folder / name)
    for part in source.iterdir():
        if part.name in trained or part.name.startswith("."):
            continue
        if part.is_dir() and part.name in index:
            shutil.copytree(part, folder / part.name)
        elif part.name == INDEX or (part.is_file() and part.stem.upper() in LICENCES):
            shutil.copy(part, folder / part.name)


def _local(path: str) -> Path:
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path))
