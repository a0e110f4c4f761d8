"""The directive ``command``: what a command takes, as the command line itself has it, made while the pages are built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from flowfactory.cli.main import app


def find(words: str) -> Any:
    """The command. KeyError: there is none."""
    node: Any = typer.main.get_command(app)
    for word in words.split():
        node = node.commands[word]
    return node


def table(words: str) -> list[str]:
    """Markdown: what it does, how it is typed, and a row for each argument and option."""
    command = find(words)
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    named = " ".join(_value(parameter) for parameter in arguments)
    rows = [(f"`{_value(parameter)}`", parameter) for parameter in arguments]
    rows += [(_option(parameter), parameter) for parameter in options]
    typed = f"flowfactory {words} {named} [OPTIONS]".replace("  ", " ")
    told = [f"{' '.join((command.help or '').split())} Typed as `{typed}`.", "", "| | |", "|---|---|"]
    return [*told, *(f"| {name} | {_cell(parameter)} |" for name, parameter in rows)] if rows else told[:1]


def _value(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _option(parameter: Any) -> str:
    value = "" if parameter.is_flag else f" {_value(parameter)}"
    return f"`{parameter.opts[0]}{value}`".replace("|", "\\|")


def _cell(parameter: Any) -> str:
    shown = parameter.default
    default = f" Default {shown}." if isinstance(shown, int | float | str) and not isinstance(shown, bool) else ""
    return f"{' '.join((parameter.help or '').split())}{default}".replace("|", "\\|").replace("<", "&lt;")


def commands() -> Iterator[str]:
    """The words of every command that does something by itself."""

    def walk(node: Any, words: tuple[str, ...]) -> Iterator[str]:
        inner = getattr(node, "commands", {})
        if not inner:
            yield " ".join(words)
        for name, each in inner.items():
            yield from walk(each, (*words, name))

    yield from walk(typer.main.get_command(app), ())


def setup(app: Any) -> dict[str, bool]:
    """Add the directive."""
    from docutils import nodes
    from docutils.statemachine import StringList
    from sphinx.util.docutils import SphinxDirective

    class Command(SphinxDirective):
        required_arguments = 1
        final_argument_whitespace = True

        def run(self) -> list[nodes.Node]:
            holder = nodes.container(classes=["options"])
            self.state.nested_parse(StringList(table(self.arguments[0]), source="command"), 0, holder)
            return list(holder.children)

    app.add_directive("command", Command)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
