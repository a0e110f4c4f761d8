"""What training began with, as somebody else finds it."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowfactory.config.component import ModelConfig
from flowfactory.config.yaml import parse_head
from flowfactory.models.family_config import FamilyConfig
from flowfactory.models.pretrained import Pretrained
from flowfactory.untrusted_files import Refused, read_bytes

INDEX = "model_index.json"
LARGEST_CARD = 4 * 2**20
"""Bytes of a card that is looked into."""
LONGEST_NAME = 500
"""Characters of a licence's name and link."""


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

    def loads_adapters(self) -> bool:
        """Whether the pipeline loads adapters, rather than its transformers alone."""
        kind = self._class()
        return kind is None or hasattr(kind, "load_lora_weights")

    def _class(self) -> Any:
        import diffusers

        return getattr(diffusers, str(self.index.get("_class_name")), None)

    def absent_parts(self) -> list[str]:
        """The parts that diffusers wants to be told that there are none of, before it opens the pipeline."""
        kind = self._class()
        if kind is None:
            return []
        wanted = [name for name, part in inspect.signature(kind).parameters.items() if part.default is part.empty]
        there = {name for name, part in self.index.items() if part != [None, None]}
        return [name for name in wanted if name not in there and name not in kind._optional_components]


def find_origin(model: ModelConfig) -> Origin:
    """What the options of a model name. Reads no weights and downloads nothing."""
    path = getattr(model, "path", None)
    component = str(getattr(model, "name", type(model).__name__))
    folder = Path(path) if isinstance(path, str | Path) else None
    if folder is None or not (folder.is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", str(path))):
        return Origin(component, pipeline=False)
    index = Pretrained(str(path), ()).config("")
    hub_id = downloaded_from(folder) if folder.is_dir() else str(path)
    if hub_id is None:
        package, inside = _find_package(model, folder)
        licence = _read_licence(folder / "README.md")
        # a folder's place is nobody else's business
        return Origin(folder.resolve().name, bool(index), False, package, inside, licence, index)
    if not index and not isinstance(model, FamilyConfig):
        return Origin(component, pipeline=False)
    card = folder / "README.md" if folder.is_dir() else _cached(hub_id, "README.md")
    return Origin(hub_id, pipeline=True, hub=True, licence=_read_licence(card, hub_id), index=index)


def downloaded_from(folder: Path) -> str | None:
    """The hub id of what a hub's client keeps in ``folder``, which has it in its name; None of other folders."""
    found = re.search(r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+$", folder.resolve().as_posix())
    return f"{found[1]}/{found[2]}" if found else None


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


def _read_licence(card: Path | None, hub_id: str | None = None) -> tuple[tuple[str, str], ...]:
    """``license`` and what goes with it in the head of a card; a link into its own folder becomes one to ``hub_id``."""
    if card is None:
        return ()
    try:
        parts = read_bytes(card, LARGEST_CARD).decode("utf-8", "replace").replace("\r\n", "\n").split("---\n", 2)
    except (OSError, Refused):
        return ()
    head = parse_head(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    if not isinstance(head, dict):
        return ()
    told = {key: head.get(key) for key in ("license", "license_name", "license_link")}
    found = {key: value for key, value in told.items() if isinstance(value, str) and 0 < len(value) <= LONGEST_NAME}
    link = found.get("license_link", "")
    if link and "://" not in link:
        found["license_link"] = f"https://huggingface.co/{hub_id}/blob/main/{link}" if hub_id else ""
    return tuple((key, value) for key, value in found.items() if value)
