"""The sections of a page, and the links to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flowfactory.runs.report.markup import Markup, Part, element, join


class Section(NamedTuple):
    """A part of a page under a heading that can be linked to; one without content is left out."""

    name: str
    title: str
    content: Markup

    def markup(self) -> Markup:
        """The section as HTML, empty where it has no content."""
        return element("section", element("h2", self.title, id=self.name), self.content) if self.content else Markup()


def section(name: str, title: str, *parts: Part) -> Section:
    """A section of ``parts``."""
    return Section(name, title, join(*parts))


def links(sections: Sequence[Section]) -> Markup:
    """Links to all ``sections``."""
    return element("nav", [element("a", each.title, href=f"#{each.name}") for each in sections], aria_label="Sections")
