"""The versions that a run was made with."""

from __future__ import annotations

from importlib import metadata
from itertools import chain


def versions() -> dict[str, str]:
    """The version of every distribution that has a say in the figures."""
    names = ["flowfactory", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "bitsandbytes"]
    plugins = sorted({entry.dist.name for entry in metadata.entry_points(group="flowfactory") if entry.dist})
    found = {}
    for name in chain(names, plugins):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
