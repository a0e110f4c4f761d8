"""What is installed: components by kind and name, found through entry points and loaded lazily."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from flowfactory.discovery.specs import PROJECT, DiscoverySpecs
from flowfactory.errors import UserError
from flowfactory.suggestions import did_you_mean

KINDS = ("model", "algorithm", "reward", "dynamics", "tracker", "example")
NARROW = "FLOWFACTORY_PLUGINS"


@dataclass(frozen=True)
class Component:
    """One registered name."""

    kind: str
    name: str
    spec: Any
    plugin: str
    version: str


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded, and why."""

    plugin: str
    reason: str


@dataclass
class Catalogue:
    """Every component by kind and name, and the plugins that failed."""

    components: dict[str, dict[str, Component]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    broken: list[Broken] = field(default_factory=list)

    def find(self, kind: str, name: str) -> Component:
        """The component. UserError: there is none; names the nearest, and the plugins that failed to load."""
        if name in self.components[kind]:
            return self.components[kind][name]
        failed = "".join(f"; plugin {b.plugin!r} could not be loaded: {b.reason}" for b in self.broken)
        raise UserError(f"no {kind} called {name!r}{did_you_mean(name, self.components[kind])}{failed}")


def discover(files: Sequence[Path] = ()) -> Catalogue:
    """The catalogue of all installed plugins and of the one-file plugins ``files``.

    The environment variable FLOWFACTORY_PLUGINS, a comma-separated list of entry-point names, narrows what is loaded
    besides core. An installed plugin that fails is listed as broken; a file that fails is a UserError.
    """
    catalogue = Catalogue()
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(DiscoverySpecs)
    current: list[tuple[str, str]] = []

    def register(kind: str, name: str, spec: Any) -> None:
        plugin, version = current[-1]
        if kind not in KINDS:
            raise ValueError(f"registers {name!r} as a {kind!r}{did_you_mean(kind, KINDS)}")
        if name in catalogue.components[kind]:
            raise ValueError(f"{kind} {name!r} is already registered by {catalogue.components[kind][name].plugin!r}")
        catalogue.components[kind][name] = Component(kind, name, spec, plugin, version)

    manager.hook.register_components.call_historic(kwargs={"register": register})

    def admit(plugin: str, version: str, module: ModuleType) -> None:
        before = {kind: dict(names) for kind, names in catalogue.components.items()}
        current.append((plugin, version))
        try:
            manager.register(module, plugin)  # historic: answers register_components at once
            if not manager.get_hookcallers(module):
                raise ValueError("has no function register_components marked with @hookimpl")
        except Exception:
            catalogue.components = before  # half a plugin is worse than none
            raise

    chosen = os.environ.get(NARROW)
    wanted = None if chosen is None else {"core", *(name.strip() for name in chosen.split(","))}
    for entry in sorted(metadata.entry_points(group=PROJECT), key=lambda entry: (entry.name != "core", entry.name)):
        if wanted is not None and entry.name not in wanted:
            continue
        try:
            version = entry.dist.version if entry.dist else ""
            admit(entry.name, version, entry.load())
        except Exception as error:
            catalogue.broken.append(Broken(entry.name, f"{type(error).__name__}: {error}"))
    for file in dict.fromkeys(Path(file).resolve() for file in files):
        try:
            admit(file.name, "", _import_file(file))
        except Exception as error:
            raise UserError(f"plugin {file}: {type(error).__name__}: {error}") from error
    return catalogue


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError("no such file")
    name = f"flowfactory_plugin_{path.stem}"
    spec = util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic resolves annotations through sys.modules
    spec.loader.exec_module(module)
    return module
