"""discover(): asks every installed plugin, and one-file plugins, what they bring."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from flowfactory.discovery.catalogue import CORE, NARROW, Asked, Catalogue, Component, Remark, check_kind
from flowfactory.discovery.hook_checks import check_hooks, require_marked
from flowfactory.discovery.hook_trace import trace_calls
from flowfactory.discovery.source_places import describe_exception
from flowfactory.discovery.specs import PROJECT, DiscoverySpecs
from flowfactory.discovery.written_for import file_misfit, package_misfit
from flowfactory.errors import UserError
from flowfactory.suggestions import did_you_mean
from flowfactory.untrusted_files import Refused, read_bytes

SLOW = 0.5
"""Seconds from which on a plugin is said to be slow."""
LARGEST_FILE = 64 * 2**20

Approve = Callable[[Path, bytes], None]
"""Raises a UserError where a one-file plugin, which is at a path and has such a content, is not to be executed."""


def discover(files: Sequence[Path] = (), approve: Approve = lambda file, content: None) -> Catalogue:
    """The catalogue of all installed plugins and of the one-file plugins ``files``.

    Each file is read once, links followed, and what ``approve`` has seen of it is what is executed.

    The environment variable FLOWFACTORY_PLUGINS, a comma-separated list of the names of entry points or packages, narrows
    what is loaded besides core; UserError: it names one that is not installed. An installed plugin that fails is listed as
    broken; a file that fails is a UserError.
    """
    catalogue = Catalogue()
    for entry in _chosen_entries(catalogue):
        distribution = entry.dist.name if entry.dist else entry.name
        version = entry.dist.version if entry.dist else ""
        misfit = package_misfit(entry.dist) if entry.dist else ""
        try:
            _ask(catalogue, entry.name, entry.load, distribution, version, misfit)
        except (Exception, SystemExit) as error:
            catalogue.broken.append(Remark(entry.name, "; ".join(filter(None, [describe_exception(error), misfit]))))
    paths = list(dict.fromkeys(Path(file).resolve() for file in files))
    for file in paths:
        alone = [path.name for path in paths].count(file.name) == 1
        misfit = ""
        try:
            content = read_plugin(file)
            approve(file, content)
            misfit = file_misfit(file.name, content.decode(errors="replace"))
            load = partial(_execute, file, content)
            _ask(catalogue, file.name, load, file.name if alone else str(file), misfit=misfit)
        except (Exception, SystemExit) as error:
            told = "; ".join(filter(None, [describe_exception(error), misfit]))
            raise UserError(f"plugin {file}: {told}") from error
    return catalogue


def _chosen_entries(catalogue: Catalogue) -> list[metadata.EntryPoint]:
    """The entry points to load, core's first; those that FLOWFACTORY_PLUGINS leaves out are noted in ``catalogue``."""
    entries = sorted(metadata.entry_points(group=PROJECT), key=_order)
    chosen = os.environ.get(NARROW)
    if chosen is None:
        return entries
    wanted = {"core", *filter(None, (name.strip() for name in chosen.split(",")))}
    names = {"core"}.union(*map(_names, entries))
    for name in sorted(wanted - names):
        apart = "; separate several with commas" if re.search(r"[;\s]", name) else did_you_mean(name, names)
        raise UserError(f"the environment variable {NARROW} names {name!r}, which no installed plugin has{apart}")
    catalogue.left_out += [entry.name for entry in entries if wanted.isdisjoint(_names(entry))]
    return [entry for entry in entries if not wanted.isdisjoint(_names(entry))]


def _names(entry: metadata.EntryPoint) -> set[str]:
    """What FLOWFACTORY_PLUGINS may call it: its own name, or its package's."""
    return {entry.name, entry.dist.name} if entry.dist else {entry.name}


def _order(entry: metadata.EntryPoint) -> tuple[bool, str, str]:
    distribution = entry.dist.name if entry.dist else ""
    return distribution != CORE, entry.name, distribution


def _ask(
    catalogue: Catalogue, plugin: str, load: Callable[[], Any], distribution: str, version: str = "", misfit: str = ""
) -> None:
    """Add what the module that ``load`` imports registers, all of it or, where it raises, nothing."""
    mine: list[Component] = []

    def register(kind: str, name: str, spec: Any) -> None:
        taken = [*mine, *(component for component in catalogue.found if component.distribution == distribution)]
        check_kind(kind, name, taken)
        mine.append(Component(kind, name, spec, plugin, distribution, version, misfit))

    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(DiscoverySpecs)
    trace_calls(manager)
    started, had_torch = time.perf_counter(), "torch" in sys.modules
    try:
        with redirect_stdout(sys.stderr):  # what a plugin prints is no part of a command's answer
            module = load()
            if not isinstance(module, ModuleType):
                raise UserError(f"the entry point is a {type(module).__name__}; name the module, without a colon")
            check_hooks(module, DiscoverySpecs)
            require_marked(module, "register_components")
            manager.register(module, plugin)
            manager.hook.register_components(register=register)
    finally:
        seconds = time.perf_counter() - started
        catalogue.asked.append(Asked(plugin, distribution, version, seconds))
    catalogue.found += mine
    if not had_torch and "torch" in sys.modules:
        advice = 'register "package.module:Class" instead of the class, and import torch there'
        catalogue.slow.append(Remark(plugin, f"{seconds:.1f} s: imports torch when it is asked what it brings; {advice}"))
    elif seconds > SLOW:
        catalogue.slow.append(Remark(plugin, f"{seconds:.1f} s to say what it brings"))


def read_plugin(path: Path) -> bytes:
    """The content of a one-file plugin. UserError: it is no Python file, or cannot be read."""
    if path.suffix != ".py":
        raise UserError("not a Python file, whose name ends in .py")
    try:
        return read_bytes(path, LARGEST_FILE)
    except FileNotFoundError as error:
        raise UserError("no such file") from error
    except Refused as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from error


def _execute(path: Path, content: bytes) -> ModuleType:
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"flowfactory_plugin_{path.stem}_{digest}"  # files of one name in two folders are two modules
    spec = util.spec_from_file_location(name, path)
    if spec is None:
        raise UserError("not a Python file, whose name ends in .py")
    module = util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic resolves annotations through sys.modules
    # not by the loader, which would read the file again, or execute what lies compiled beside it
    exec(compile(content, path, "exec", dont_inherit=True), vars(module))
    return module
