"""What training began with, as somebody else finds it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flowfactory.config.component import ModelConfig
from flowfactory.models.family import FamilyConfig
from flowfactory.models.pretrained import Pretrained

INDEX = "model_index.json"


@dataclass(frozen=True)
class Origin:
    """A model that was trained further: ``name`` is its hub id, else its folder's name, else the component's.

    pipeline: whether diffusers opens it. hub: whether ``name`` is a hub id. package: the import name of the package whose
    folder holds it at ``inside``. licence: what its own card says about it, as a card's head has it. index: what its
    model_index.json says, nothing where that is not on this machine.
    """

    name: str
    pipeline: bool
    hub: bool = False
    package: str | None = None
    inside: tuple[str, ...] = ()
    licence: tuple[tuple[str, str], ...] = ()
    index: Mapping[str, Any] = field(default_factory=dict)

    def absent_parts(self) -> list[str]:
        """The parts that diffusers wants to be told that there are none of, before it opens the pipeline."""
        import diffusers

        kind = getattr(diffusers, str(self.index.get("_class_name")), None)
        if kind is None:
            return []
        wanted = [name for name, part in inspect.signature(kind).parameters.items() if part.default is part.empty]
        there = {name for name, part in self.index.items() if part != [None, None]}
        return [name for name in wanted if name not in there and name not in kind._optional_components]


def find_origin(model: ModelConfig) -> Origin:
    """What the options of a model name. Reads no weights and downloads nothing."""
    path = getattr(model, "path", None)
    component = str(getattr(model, "name", type(model).__name__))
    if not isinstance(path, str | Path):
        return Origin(component, pipeline=False)
    folder = Path(path)
    if folder.is_dir():
        package, inside = _find_package(model, folder)
        index = Pretrained(str(path), ()).config("")
        # a folder's place is nobody else's business
        return Origin(folder.name, bool(index), False, package, inside, _read_licence(folder / "README.md"), index)
    index = Pretrained(str(path), ()).config("")
    if index or isinstance(model, FamilyConfig):
        licence = _read_licence(_cached(str(path), "README.md"))
        return Origin(str(path), pipeline=True, hub=True, licence=licence, index=index)
    return Origin(component, pipeline=False)


def _find_package(model: ModelConfig, folder: Path) -> tuple[str | None, tuple[str, ...]]:
    # a config's own class is made of the plugin's
    for name in dict.fromkeys(kind.__module__.partition(".")[0] for kind in type(model).__mro__):
        for root in map(Path, getattr(sys.modules.get(name), "__path__", ())):
            if folder.resolve().is_relative_to(root.resolve()):
                return name, folder.resolve().relative_to(root.resolve()).parts
    return None, ()


def _cached(hub_id: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, file)
    return Path(found) if isinstance(found, str) else None


def _read_licence(card: Path | None) -> tuple[tuple[str, str], ...]:
    if card is None or not card.is_file():
        return ()
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return ()
    try:
        head: Any = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return ()
    keys = ("license", "license_name", "license_link")
    return tuple((key, str(head[key])) for key in keys if head.get(key)) if isinstance(head, dict) else ()
