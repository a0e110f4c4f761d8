"""``flowfactory plugins`` and ``flowfactory schema``: what is installed."""

from __future__ import annotations

from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowfactory.cli.columns import cut, fill, terminal_width
from flowfactory.cli.completion import complete_component
from flowfactory.cli.options import Plugins
from flowfactory.cli.output import say, show, show_json
from flowfactory.control_characters import foreign_lines
from flowfactory.discovery.catalogue import KINDS
from flowfactory.errors import UserError

if TYPE_CHECKING:
    from flowfactory.discovery.catalogue import Catalogue, Component


def schema(plugin: Plugins = None) -> None:
    """Print the JSON schema of a config, with every installed component."""
    from flowfactory.config.editor_schema import editor_schema
    from flowfactory.discovery.discover import discover

    show_json(editor_schema(discover(plugin or [])), indent=2)


def list_plugins(
    plugin: Plugins = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help=f"One of {', '.join(KINDS)}.", autocompletion=lambda: list(KINDS))
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Every component by kind, and how the plugins that bring them do."""
    from flowfactory.discovery.descriptions import describe
    from flowfactory.discovery.discover import discover
    from flowfactory.suggestions import did_you_mean

    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind {kind}: there is no such kind{did_you_mean(kind, KINDS)}")
    catalogue = discover(plugin or [])
    chosen = {each: catalogue.components[each] for each in KINDS if kind in (None, each)}
    components = [(name, component, describe(component)) for named in chosen.values() for name, component in named.items()]
    plugins = _plugins(catalogue)
    if as_json:
        show_json({"components": [_as_json(*each) for each in components], "plugins": plugins}, indent=2)
        return
    for each in chosen:
        _say_kind(each, [row for row in components if row[1].kind == each])
    if kind is None:
        _say_plugins(plugins)


def _as_json(name: str, component: Component, description: str) -> dict[str, str]:
    from flowfactory.discovery.descriptions import evidence

    told = {"kind": component.kind, "name": name, "full_name": component.full_name, "description": description}
    status = "unfit" if component.misfit else "ok"
    origin = {"plugin": component.plugin, "distribution": component.distribution, "version": component.version}
    tried = {"evidence": evidence(component)} if component.kind == "example" else {}
    return {**told, **tried, **origin, "status": status}


def _plugins(catalogue: Catalogue) -> list[dict[str, Any]]:
    """Every plugin that was asked, and whether it is ok, broken, unfit or slow."""
    broken = {remark.plugin: remark.sentence for remark in catalogue.broken}
    slow = {remark.plugin: remark.sentence for remark in catalogue.slow}
    unfit = {component.plugin: component.misfit for component in catalogue.found if component.misfit}
    rows: list[dict[str, Any]] = []
    for asked in catalogue.asked:
        told = [
            (name, kind[asked.plugin])
            for name, kind in (("broken", broken), ("unfit", unfit), ("slow", slow))
            if asked.plugin in kind
        ]
        status, sentence = told[0] if told else ("ok", "")
        origin = {"distribution": asked.distribution, "version": asked.version}
        rows.append({"plugin": asked.plugin, **origin, "status": status, "seconds": round(asked.seconds, 4), "told": sentence})
    return rows


def _say_kind(kind: str, rows: list[tuple[str, Component, str]]) -> None:
    """A heading, then by distribution each name with what it is; of an example how far it was tried."""
    from flowfactory.discovery.descriptions import evidence

    if not rows:
        return
    say(f"{kind} ({len(rows)})")
    column = min(20, max(len(name) for name, _, _ in rows))
    for origin in dict.fromkeys(component.origin for _, component, _ in rows):
        say(f"  {origin}")
        for name, component, description in sorted(row for row in rows if row[1].origin == origin):
            tried = f"{evidence(component):<8}  " if kind == "example" else ""
            say(cut(f"    {name:<{column}}  {tried}{description}".rstrip(), terminal_width()))
    say("")


def _say_plugins(plugins: list[dict[str, Any]]) -> None:
    say(f"plugin ({len(plugins)})")
    column = min(24, max(len(row["plugin"]) for row in plugins))
    for row in plugins:
        origin = f"{row['distribution']} {row['version']}".rstrip()
        say(f"    {row['plugin']:<{column}}  {row['status']:<6}  {row['seconds']:6.3f} s to start  {origin}")
        for line in fill(row["told"], terminal_width() - 6) if row["told"] else ():
            say(f"      {line}")


def show_plugin(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A component, as 'plugins list' names it.", autocompletion=complete_component),
    ],
    plugin: Plugins = None,
) -> None:
    """What a component is, its options with their types, bounds and defaults, and an example to copy."""
    from flowfactory.config.component_slots import known_as
    from flowfactory.discovery.discover import discover
    from flowfactory.discovery.own_packages import missing_package
    from flowfactory.suggestions import did_you_mean, join_or

    catalogue = discover(plugin or [])
    found = [component for component in catalogue.found if name in (component.name, component.full_name)]
    if not found:
        everything = {known for components in catalogue.components.values() for known in components}
        meant = list(filter(None, (known_as(catalogue, kind, name) for kind in KINDS if kind != "example")))
        absent = next((kind for kind in KINDS if missing_package(kind, name)), None)
        if meant:
            nearest = f"; did you mean {join_or(meant)}?"
        else:
            nearest = catalogue.instead_of(absent, name) if absent else did_you_mean(name, everything)
        raise UserError(f"no component called {name!r}{nearest}")
    for component in found:
        say(f"{component.kind} {component.name}, from {component.origin}")
        if component.kind == "example":
            show(Path(component.spec).read_text(encoding="utf-8"))
        else:
            _say_options(catalogue, component)


def _say_options(catalogue: Catalogue, component: Component) -> None:
    from flowfactory.config.component_slots import slot_type
    from flowfactory.config.example_options import example
    from flowfactory.config.wording import allowed, written

    config = slot_type(catalogue, component.kind, [component.full_name])
    show(foreign_lines(cleandoc(config.__doc__ or "")))
    fields = {key: field for key, field in config.model_fields.items() if key != "name"}
    if fields:
        show("\noptions:")
    for key, field in fields.items():
        default = "required" if field.is_required() else f"default {written(field.default)}"
        told = f"{key}: {allowed(field)}; {default}" + (f"; {field.description}" if field.description else "")
        for number, line in enumerate(fill(told, terminal_width() - 6)):
            say(f"  {line}" if not number else f"      {line}")
    show(f"\nexample:\n{example(catalogue, component)}")
