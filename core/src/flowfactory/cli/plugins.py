"""``flowfactory plugins`` and ``flowfactory schema``: what is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowfactory.cli.options import Plugins
from flowfactory.errors import UserError


def schema(plugin: Plugins = None) -> None:
    """Print the JSON schema of a config, with every installed component."""
    import json

    from flowfactory.config.component_slots import schema_type
    from flowfactory.discovery.catalogue import discover

    typer.echo(json.dumps(schema_type(discover(plugin or [])).model_json_schema(), indent=2))


def list_plugins(plugin: Plugins = None) -> None:
    """Every component by kind, and the plugins that could not be loaded."""
    from flowfactory.discovery.catalogue import discover

    catalogue = discover(plugin or [])
    for kind, components in catalogue.components.items():
        for name in sorted(components):
            typer.echo(f"{kind:<10} {name:<18} {components[name].plugin} {components[name].version}".rstrip())
    for broken in catalogue.broken:
        typer.echo(f"{'broken':<10} {broken.plugin:<18} {broken.reason}")


def show_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A component, as 'plugins list' names it.")],
    plugin: Plugins = None,
) -> None:
    """What a component is, and its options."""
    from flowfactory.config.component_slots import known_as, slot_type
    from flowfactory.config.wording import allowed, written
    from flowfactory.discovery.catalogue import KINDS, discover
    from flowfactory.suggestions import did_you_mean, join_or

    catalogue = discover(plugin or [])
    found = [components[name] for components in catalogue.components.values() if name in components]
    if not found:
        everything = {known for components in catalogue.components.values() for known in components}
        meant = list(filter(None, (known_as(catalogue, kind, name) for kind in KINDS if kind != "example")))
        nearest = f"; did you mean {join_or(meant)}?" if meant else did_you_mean(name, everything)
        raise UserError(f"no component called {name!r}{nearest}")
    for component in found:
        typer.echo(f"{component.kind} {component.name}, from {component.plugin} {component.version}".rstrip())
        if component.kind == "example":
            typer.echo(Path(component.spec).read_text(encoding="utf-8"))
            continue
        config = slot_type(catalogue, component.kind, [component.name])
        typer.echo((config.__doc__ or "").strip())
        for key, field in config.model_fields.items():
            if key == "name":
                continue
            default = "required" if field.is_required() else f"default {written(field.default)}"
            typer.echo(f"  {key}: {allowed(field)}; {default}" + (f"; {field.description}" if field.description else ""))
