"""HTML that is put together from parts, where text is text: nothing but a :class:`Markup` becomes an element."""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = {"br", "img", "input", "meta", "path", "polyline", "polygon"}
"""Elements without content; those of SVG among them are closed by a slash."""


class Markup(str):
    """A piece of HTML. :func:`element`, :func:`join` and :func:`raw` make it."""

    __slots__ = ()


Part = str | int | None | Iterable["Part"]
"""Text, which is escaped unless it is a :class:`Markup`; nothing; or several of these."""


def raw(text: str) -> Markup:
    """``text`` of our own as it stands: the style, the script."""
    return Markup(text)


def join(*parts: Part) -> Markup:
    """All ``parts`` one after the other, text escaped."""
    return Markup("".join(map(_write, parts)))


def element(name: str, /, *parts: Part, **attributes: str | float | bool | None) -> Markup:
    """``<name …>parts</name>``. An attribute that is None or False is left out, and True has no value.

    ``_`` in the name of an attribute stands for ``-``; at its end for nothing, as in ``class_``.
    """
    told = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{told}/>")
    return Markup(f"<{name}{told}>{join(*parts)}</{name}>")


def scrolled(table: Markup, name: str) -> Markup:
    """``table``, which scrolls by itself where it is wider than the page; ``name`` says what it is."""
    return element("div", table, class_="scroll", tabindex=0, role="group", aria_label=name)


def _attribute(name: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


def _write(part: Part) -> str:
    if part is None:
        return ""
    if isinstance(part, Markup):
        return part
    if isinstance(part, str | int):
        return html.escape(str(part))
    return join(*part)
