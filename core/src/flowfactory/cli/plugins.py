"""``flowfactory plugins`` and ``flowfactory schema``: what is installed."""

from __future__ import annotations

from inspect import cleandoc
from pathlib import Path
from typing import Annotated

import typer

from flowfactory.cli.options import Plugins
from flowfactory.cli.output import say, show, show_json
from flowfactory.control_characters import foreign_lines
from flowfactory.errors import UserError


def schema(plugin: Plugins = None) -> None:
    """Print the JSON schema of a config, with every installed component."""
    from flowfactory.config.component_slots import schema_type
    from flowfactory.discovery.discover import discover

    show_json(schema_type(discover(plugin or [])).model_json_schema(), indent=2)


def list_plugins(plugin: Plugins = None) -> None:
    """Every component by kind, and the plugins that could not be loaded."""
    from flowfactory.discovery.discover import discover

    catalogue = discover(plugin or [])
    rows = [(kind, name, c.origin) for kind, named in catalogue.components.items() for name, c in sorted(named.items())]
    misfits = {c.plugin: c.misfit for c in catalogue.found if c.misfit}
    rows += [("unfit", plugin, sentence) for plugin, sentence in misfits.items()]
    rows += [("slow", remark.plugin, remark.sentence) for remark in catalogue.slow]
    rows += [("broken", remark.plugin, remark.sentence) for remark in catalogue.broken]
    for kind, name, told in rows:
        say(f"{kind:<10} {name:<18} {told}".rstrip())


def show_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A component, as 'plugins list' names it.")],
    plugin: Plugins = None,
) -> None:
    """What a component is, and its options."""
    from flowfactory.config.component_slots import known_as, slot_type
    from flowfactory.config.wording import allowed, written
    from flowfactory.discovery.catalogue import KINDS
    from flowfactory.discovery.discover import discover
    from flowfactory.suggestions import did_you_mean, join_or

    catalogue = discover(plugin or [])
    found = [component for component in catalogue.found if name in (component.name, component.full_name)]
    if not found:
        everything = {known for components in catalogue.components.values() for known in components}
        meant = list(filter(None, (known_as(catalogue, kind, name) for kind in KINDS if kind != "example")))
        nearest = f"; did you mean {join_or(meant)}?" if meant else did_you_mean(name, everything)
        raise UserError(f"no component called {name!r}{nearest}")
    for component in found:
        say(f"{component.kind} {component.name}, from {component.origin}")
        if component.kind == "example":
            show(Path(component.spec).read_text(encoding="utf-8"))
            continue
        config = slot_type(catalogue, component.kind, [component.full_name])
        show(foreign_lines(cleandoc(config.__doc__ or "")))
        for key, field in config.model_fields.items():
            if key == "name":
                continue
            default = "required" if field.is_required() else f"default {written(field.default)}"
            say(f"  {key}: {allowed(field)}; {default}" + (f"; {field.description}" if field.description else ""))
