"""Mistakes in how a plugin writes its hooks, which pluggy would pass over or tell in its own words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from flowfactory.discovery.source_places import place_of
from flowfactory.discovery.specs import PROJECT
from flowfactory.errors import UserError
from flowfactory.suggestions import did_you_mean

_MARK = f"{PROJECT}_impl"


def check_hooks(component: object, specs: type) -> None:
    """UserError: a marked function of ``component`` is no hook of ``specs``, takes what that does not give, or cannot wrap."""
    hooks = hooks_of(specs)
    for name, function, options in marked(component):
        hook = options.get("specname") or name
        if hook not in hooks and options.get("optionalhook"):
            continue
        if hook not in hooks:
            raise UserError(
                f"{place_of(function)} is marked with @hookimpl, and no hook is called {hook!r}{did_you_mean(hook, hooks)}"
            )
        if _wraps(options) and not inspect.isgeneratorfunction(inspect.unwrap(function)):
            raise UserError(
                f"{place_of(function)} is to wrap {hook} and has no yield; write 'result = yield' and return the result"
            )
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise UserError(f"{place_of(function)} is async and would never run; write def without async")
        _check_parameters(getattr(component, name), hook, hooks[hook])


def check_unmarked(component: object, specs: type, groups: Collection[Collection[str]]) -> None:
    """UserError: ``component`` has what looks like a hook of ``specs``, without a mark, beside marked ones of its group.

    It looks like one when it has the name, and takes some of what the hook gives and nothing else.
    """
    hooks = hooks_of(specs)
    implemented = {options.get("specname") or name for name, _, options in marked(component)}
    for name in (name for group in groups if implemented & set(group) for name in group if name not in implemented):
        function = inspect.getattr_static(type(component), name, None)
        if not inspect.isfunction(function):
            continue
        taken = set(inspect.signature(getattr(component, name)).parameters)
        if taken and taken <= set(hooks[name]):
            raise _unmarked(function)


def require_marked(component: object, hook: str) -> None:
    """UserError unless ``component`` implements ``hook``, and more than wraps it."""
    for name, _, options in marked(component):
        if (options.get("specname") or name) == hook and not _wraps(options):
            return
    owner = component if isinstance(component, ModuleType) else type(component)
    function = inspect.getattr_static(owner, hook, None)
    if inspect.isfunction(function) and not hasattr(function, _MARK):
        raise _unmarked(function)
    if isinstance(owner, ModuleType):
        raise UserError(f"has no function {hook}; write one and mark it with @hookimpl")
    raise UserError(f"{place_of(owner)} does not implement {hook}; write the method and mark it with @hookimpl")


def _unmarked(function: Callable[..., Any]) -> UserError:
    return UserError(f"{place_of(function)} is not marked and would never be called; write @hookimpl above it")


def hooks_of(specs: type) -> dict[str, list[str]]:
    """The hooks of ``specs`` and the names of what each gives."""
    marks = {name: function for name, function in vars(specs).items() if hasattr(function, f"{PROJECT}_spec")}
    return {name: [*inspect.signature(function).parameters][1:] for name, function in marks.items()}


def marked(component: object) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """(name, function, options of the mark) of each function of a component's class, or of a module, that is marked."""
    owner = component if isinstance(component, ModuleType) else type(component)
    for name in dir(owner):
        # statically: a property must not run
        function = inspect.getattr_static(owner, name)
        if isinstance(function, classmethod | staticmethod) and _MARK in vars(function).keys() - vars(function.__func__):
            kind = type(function).__name__
            raise UserError(f"{place_of(function)} is marked outside its @{kind}; write @{kind} above @hookimpl")
        function = getattr(function, "__func__", function)
        options = getattr(function, _MARK, None) if inspect.isfunction(function) else None
        if options is not None:
            yield name, function, options


def _wraps(options: Mapping[str, Any]) -> bool:
    return bool(options.get("wrapper") or options.get("hookwrapper"))


def _check_parameters(function: Callable[..., Any], hook: str, given: Sequence[str]) -> None:
    for name, parameter in inspect.signature(function).parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if name not in given and not optional:
            raise UserError(f"{place_of(function)}: {hook} gives no {name!r}{did_you_mean(name, given)}")
        if name in given and parameter.kind is parameter.KEYWORD_ONLY:
            raise UserError(f"{place_of(function)}: {name!r} stands after a * and is never given; remove the *")
