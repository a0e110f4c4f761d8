"""The pluggy manager of a run: just the components that its config names, and one implementation where one is wanted."""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

from flowfactory.discovery.hook_checks import check_hooks, check_unmarked, require_marked
from flowfactory.discovery.hook_trace import trace_calls
from flowfactory.discovery.specs import PROJECT
from flowfactory.errors import UserError
from flowfactory.hooks.specs import RunSpecs

EXACTLY_ONE = {"load": "model", "encode": "model", "sample": "model", "log_prob": "model", "update": "algorithm"}

MARKED_TOGETHER = (
    ("load", "encode", "sample", "log_prob"),
    ("plan", "update"),
    ("prepare_reward", "compute_reward"),
    (
        *("prepare_tracker", "prompts_encoded", "phase_progressed", "run_started", "evaluation_finished"),
        *("iteration_finished", "checkpoint_saved", "run_finished", "run_failed"),
    ),
)
"""What a component that has one of them implements: where one is marked, another without a mark was forgotten."""


def make_manager(components: Mapping[str, object]) -> pluggy.PluginManager:
    """A fresh manager that holds just ``components`` under their labels. UserError: one does not fit the hook specs."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RunSpecs)
    trace_calls(manager)
    for label, component in components.items():
        try:
            check_hooks(component, RunSpecs)
            check_unmarked(component, RunSpecs, MARKED_TOGETHER)
            manager.register(component, label)
        except UserError as error:
            raise UserError(f"{label}: {error}") from error
        except ValueError as error:
            told = " ".join(str(error).split())
            raise UserError(f"{label}: {told}; components must compare by identity, as plain classes do") from error
    return manager


def require_hook(manager: pluggy.PluginManager, owner: str, hook: str) -> None:
    """UserError unless ``owner`` implements ``hook``, and where one is wanted nobody else does."""
    try:
        require_marked(manager.get_plugin(owner), hook)
    except UserError as error:
        raise UserError(f"{owner}: {error}") from error
    implementations = [
        implementation.plugin_name
        for implementation in getattr(manager.hook, hook).get_hookimpls()
        if not (implementation.wrapper or implementation.hookwrapper)
    ]
    if hook in EXACTLY_ONE and len(implementations) > 1:
        others = ", ".join(name for name in implementations if name != owner)
        raise UserError(f"{hook} is implemented by {owner} and by {others}; exactly one may, others wrap (wrapper=True)")
