"""The pluggy manager of a run: just the components that its config names, and one implementation where one is wanted."""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

from flowfactory.discovery.specs import PROJECT
from flowfactory.errors import UserError
from flowfactory.hooks.specs import RunSpecs

EXACTLY_ONE = {"load": "model", "encode": "model", "sample": "model", "log_prob": "model", "update": "algorithm"}


def make_manager(components: Mapping[str, object]) -> pluggy.PluginManager:
    """A fresh manager that holds just ``components`` under their labels. UserError: one does not fit the hook specs."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RunSpecs)
    for label, component in components.items():
        try:
            manager.register(component, label)
        except ValueError as error:
            told = " ".join(str(error).split())
            raise UserError(f"{label}: {told}; components must compare by identity, as plain classes do") from error
        except pluggy.PluginValidationError as error:
            raise UserError(f"{label}: {' '.join(str(error).split())}") from error
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise UserError(f"{' '.join(str(error).split())}; there is no such hook; see flowfactory.hooks.specs") from error
    return manager


def require_hook(manager: pluggy.PluginManager, owner: str, hook: str) -> None:
    """UserError unless ``owner`` implements ``hook``, and where one is wanted nobody else does."""
    implementations = [
        implementation.plugin_name
        for implementation in getattr(manager.hook, hook).get_hookimpls()
        if not (implementation.wrapper or implementation.hookwrapper)
    ]
    if owner not in implementations:
        kind = type(manager.get_plugin(owner)).__name__
        raise UserError(f"{owner}: {kind} does not implement {hook}; write the method and mark it with @hookimpl")
    if hook in EXACTLY_ONE and len(implementations) > 1:
        others = ", ".join(name for name in implementations if name != owner)
        raise UserError(f"{hook} is implemented by {owner} and by {others}; exactly one may, others wrap (wrapper=True)")
