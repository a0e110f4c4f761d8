"""Copies of a checkpoint's folder, and ways to damage them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4665b0\nsize 4\n"

Harm = Callable[[Path], None]


def copy_of(folder: Path, copy: Path) -> Path:
    """``folder`` in ``copy``, whose files are the same until they are replaced."""
    return Path(shutil.copytree(folder, copy, copy_function=os.link))


def weights_of(folder: Path) -> Path:
    """The one file with weights."""
    (file,) = folder.glob("*.safetensors")
    return file


def replaced(file: Path, content: str | bytes) -> None:
    """``content`` in place of ``file``, which copies are linked to."""
    file.unlink(missing_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def reweighted(change: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]) -> Harm:
    """Other weights, by those that were there."""

    def harm(folder: Path) -> None:
        file = weights_of(folder)
        weights = {name: tensor.clone() for name, tensor in change(load_file(file)).items()}
        file.unlink()
        save_file(weights, file, metadata={"format": "pt"})

    return harm


def prefixed(prefix: str) -> Harm:
    """All names begin with ``prefix``."""
    return reweighted(lambda weights: {prefix + name: tensor for name, tensor in weights.items()})


def without(text: str) -> Harm:
    """No weights whose names contain ``text``."""
    return reweighted(lambda weights: {name: tensor for name, tensor in weights.items() if text not in name})


def reshaped(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The first weight with another shape."""
    return {**weights, min(weights): torch.zeros(3, 5)}


def configured(**settings: Any) -> Harm:
    """Other settings in config.json."""

    def harm(folder: Path) -> None:
        file = folder / "config.json"
        replaced(file, json.dumps(json.loads(file.read_text()) | settings))

    return harm


def cut(folder: Path) -> None:
    """Two thirds of the file with the weights."""
    whole = weights_of(folder).read_bytes()
    replaced(weights_of(folder), whole[: len(whole) * 2 // 3])


def sharded(folder: Path, lose: str = "") -> None:
    """The weights in two files with an index; ``lose`` the second "file", or a "weight" of it."""
    whole = weights_of(folder)
    weights, stem = load_file(whole), whole.stem
    whole.unlink()
    names, places = sorted(weights), {}
    for number, shard in enumerate((names[::2], names[1::2]), 1):
        file = folder / f"{stem}-0000{number}-of-00002.safetensors"
        places |= dict.fromkeys(shard, file.name)
        held = shard[1:] if number == 2 and lose == "weight" else shard
        save_file({name: weights[name] for name in held}, file, metadata={"format": "pt"})
    if lose == "file":
        file.unlink()
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
