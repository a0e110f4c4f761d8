"""Fully trained transformers made into a whole pipeline."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from flowfactory.errors import UserError
from flowfactory.runs.export.origin import INDEX, LARGEST_TEXT, downloaded_from
from flowfactory.untrusted_files import Refused, leads_into, read_json

LICENCES = ("LICENSE", "LICENCE", "NOTICE")


def complete_pipeline(folder: Path, path: str, trained: list[str], dtype: torch.dtype, links: bool = True) -> None:
    """Make a pipeline of ``folder``, which holds the ``trained`` transformers: the rest is copied from that at ``path``.

    A hub id's is where it was downloaded to. UserError: a part of it is no regular file or, where those are not to be
    followed, one of its ``links`` leads out of it.
    """
    import diffusers

    source = _local(path)
    try:
        index = read_json(source / INDEX, LARGEST_TEXT)
    except Refused as error:
        raise UserError(f"model.path: {source / INDEX} {error}; get it again") from error
    for name in trained:
        kind = getattr(diffusers, index[name][1])
        whole = kind.from_pretrained(folder / name, torch_dtype=dtype)
        shutil.rmtree(folder / name)
        whole.save_pretrained(folder / name)
    copied = [part for part in source.iterdir() if part.name not in trained and _belongs(part, index)]
    for file in (file for part in copied for file in _files(part)):
        _check_place(file, source, links)
    for part in copied:
        (shutil.copytree if part.is_dir() else shutil.copy)(part, folder / part.name)


def _belongs(part: Path, index: dict[str, object]) -> bool:
    if part.is_dir():
        return part.name in index and not part.name.startswith(".")
    return part.name == INDEX or part.stem.upper() in LICENCES


def _files(part: Path) -> Iterator[Path]:
    """What is in a part, links to folders followed as they are when it is copied."""
    if not part.is_dir():
        yield part
        return
    seen = set()
    for root, _, names in os.walk(part, followlinks=True):
        if (place := os.path.realpath(root)) in seen:
            raise UserError(f"model.path: {root} is {place} once more; delete the link")
        seen.add(place)
        yield from (Path(root) / name for name in names)


def _check_place(file: Path, source: Path, links: bool) -> None:
    if not file.is_file():
        raise UserError(f"model.path: {file} is no file; delete it, or get the model again")
    # of what a hub's client keeps, the snapshots are links to the blobs
    within = source.resolve().parents[1] if downloaded_from(source) else source
    if not links and not leads_into(file, within):
        raise UserError(f"model.path: {file} leads out of {source}; put the file itself there, or add --trust")


def _local(path: str) -> Path:
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path))
