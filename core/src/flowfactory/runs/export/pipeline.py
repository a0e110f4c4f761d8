"""Fully trained transformers made into a whole pipeline."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowfactory.errors import UserError
from flowfactory.models.checkpoint_files import read_settings
from flowfactory.runs.export.origin import INDEX, downloaded_from
from flowfactory.untrusted_files import leads_into

CONFIG = "config.json"
LICENCES = ("LICENSE", "LICENCE", "NOTICE")


def complete_pipeline(folder: Path, path: str, trained: Sequence[str], links: bool = True) -> dict[str, Sequence[str]]:
    """Make a pipeline of ``folder`` but for the weights of the ``trained`` transformers, copied from that at ``path``.

    Returns of each of these the parts of names of what diffusers does not round. A hub id's pipeline is where it was downloaded
    to. UserError: a part of it is no regular file or, where those are not to be followed, one of its ``links`` leads out of it.
    """
    import diffusers

    source = _local(path)
    index = read_settings(source / INDEX)
    kinds = {name: getattr(diffusers, str((index.get(name) or ["", ""])[-1]), None) for name in trained}
    exact = {name: getattr(kind, "_keep_in_fp32_modules", None) or () for name, kind in kinds.items()}
    copied = [part for part in source.iterdir() if part.name not in trained and _belongs(part, index)]
    copied += [source / name / CONFIG for name in trained]
    for file in (file for part in copied for file in _files(part)):
        _check_place(file, source, links)
    for part in copied:
        place = folder / part.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        (shutil.copytree if part.is_dir() else shutil.copy)(part, place)
    return exact


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
