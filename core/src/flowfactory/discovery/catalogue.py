"""What is installed: components by kind and name, and what is to be said about the plugins that bring them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flowfactory.discovery.own_packages import missing_package
from flowfactory.errors import UserError
from flowfactory.suggestions import did_you_mean

KINDS = ("model", "algorithm", "reward", "dynamics", "tracker", "example")
CORE = "flowfactory"
NARROW = "FLOWFACTORY_PLUGINS"


@dataclass(frozen=True)
class Component:
    """One registered name, and the distribution, or the one file, that brings it."""

    kind: str
    name: str
    spec: Any
    plugin: str
    distribution: str
    version: str
    misfit: str = ""
    """Why its distribution does not go with this version of core."""

    @property
    def full_name(self) -> str:
        """The name that no other distribution can have."""
        return f"{self.distribution}:{self.name}"

    @property
    def origin(self) -> str:
        """``flowfactory-grpo 0.1.0``."""
        return f"{self.distribution} {self.version}".rstrip()


@dataclass(frozen=True)
class Remark:
    """What is to be said about a plugin: that it could not be loaded and why, or that it holds everything up."""

    plugin: str
    sentence: str


@dataclass(frozen=True)
class Asked:
    """A plugin that was asked what it brings, the distribution or the file that it is of, and how many seconds it took."""

    plugin: str
    distribution: str
    version: str
    seconds: float


@dataclass
class Catalogue:
    """Every component, the plugins that failed, those that are slow, and those that FLOWFACTORY_PLUGINS leaves out."""

    found: list[Component] = field(default_factory=list)
    broken: list[Remark] = field(default_factory=list)
    slow: list[Remark] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    @property
    def components(self) -> dict[str, dict[str, Component]]:
        """By kind and the name that a config uses, which is the full one where several distributions bring the short one."""
        named: dict[str, dict[str, Component]] = {kind: {} for kind in KINDS}
        for component in self.found:
            named[component.kind][self._name_to_use(component)] = component
        return named

    def find(self, kind: str, name: str) -> Component:
        """The component of this name, short or full.

        UserError: there is none, which names the nearest and the plugins that may have been to bring it; several
        distributions bring it; or its distribution requires another version of core.
        """
        meant = [c for c in self.found if c.kind == kind and name in (c.name, c.full_name)]
        if len(meant) > 1:
            origins, names = " and ".join(c.origin for c in meant), " or ".join(repr(c.full_name) for c in meant)
            raise UserError(f"{kind} {name!r} is brought by {origins}; write {names}")
        if not meant:
            raise UserError(f"no {kind} called {name!r}{self.instead_of(kind, name)}")
        if meant[0].misfit:
            raise UserError(f"{kind} {name!r}: {meant[0].misfit}")
        return meant[0]

    def instead_of(self, kind: str, name: str) -> str:
        """What to say after a ``name`` that no ``kind`` has: the nearest, and what is not loaded and may have brought it."""
        if package := missing_package(kind, name):
            return f"; it comes with {package}, which is not installed: pip install {package}"
        full = [component.full_name for component in self.found if component.kind == kind]
        told = did_you_mean(name, full if ":" in name else self.components[kind])
        return told + self._absent(name, others=not told.endswith("?"))

    def core_name(self, kind: str, name: str) -> str:
        """How a config names core's own component, whoever else brings one of that name."""
        return self._name_to_use(next(c for c in self.found if (c.kind, c.full_name) == (kind, f"{CORE}:{name}")))

    def _name_to_use(self, component: Component) -> str:
        same = [c for c in self.found if (c.kind, c.name) == (component.kind, component.name)]
        return component.name if len(same) == 1 else component.full_name

    def _absent(self, name: str, others: bool) -> str:
        """What is not loaded and may have been to bring ``name``: what is called like it, or else everything.

        ``others``: even what is left out on purpose, where nothing is called like it.
        """
        broken = {remark.plugin: f"plugin {remark.plugin!r} could not be loaded: {remark.sentence}" for remark in self.broken}
        hidden = {plugin: f"{NARROW} leaves out {plugin!r}" for plugin in self.left_out}
        alike = [told for plugin, told in {**broken, **hidden}.items() if _is_like(name, plugin)]
        rest = [f"{NARROW} leaves out others that are installed; unset it to load them"] if others and hidden else []
        return "".join(f"; {told}" for told in alike or [*broken.values(), *rest])


def _is_like(name: str, plugin: str) -> bool:
    """Whether ``name`` and the plugin's name share a word."""
    words = [set(text.replace("_", "-").replace(":", "-").lower().split("-")) - {CORE} for text in (name, plugin)]
    return bool(words[0] & words[1])


def check_kind(kind: str, name: str, taken: Sequence[Component]) -> None:
    """UserError: no such kind, no name that a config can use, or one that the same distribution has registered already."""
    if kind not in KINDS:
        raise UserError(f"registers {name!r} as a {kind!r}{did_you_mean(kind, KINDS)}")
    if not isinstance(name, str) or not name or ":" in name or name != name.strip():
        raise UserError(f"registers a {kind} as {name!r}; a name is text without a colon")
    if any((kind, name) == (component.kind, component.name) for component in taken):
        raise UserError(f"registers the {kind} {name!r} twice")
