"""The versions that a run was made with."""

from __future__ import annotations

from importlib import metadata
from itertools import chain

from flowfactory.discovery.installed_version import installed_version


def versions() -> dict[str, str]:
    """The version of every distribution that has a say in the figures."""
    names = ["flowfactory", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "bitsandbytes"]
    plugins = sorted({entry.dist.name for entry in metadata.entry_points(group="flowfactory") if entry.dist})
    found = {name: installed_version(name) for name in chain(names, plugins)}
    return {name: version for name, version in found.items() if version is not None}
