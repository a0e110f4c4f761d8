"""The directive ``drawing``: ``{drawing} drawings/loop.svg`` puts that SVG file, named from this folder, into the page itself.

An image of its own would not know whether the page is light or dark; inside, ``currentColor`` and furo's variables do.
``:alt:`` names a drawing that has no title.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    from docutils import nodes
    from docutils.parsers.rst import directives
    from sphinx.util.docutils import SphinxDirective

    class Drawing(SphinxDirective):
        required_arguments = 1
        option_spec = {"alt": directives.unchanged_required}  # noqa: RUF012 docutils has it so

        def run(self) -> list[nodes.Node]:
            file = DOCS / self.arguments[0]
            self.env.note_dependency(str(file))
            drawn = file.read_text(encoding="utf-8")
            if alt := self.options.get("alt"):
                drawn = drawn.replace("<svg ", f'<svg aria-label="{escape(alt)}" ', 1)
            # it scrolls where it is wider than the page, by keyboard too
            box = f'<div class="drawing" tabindex="0" role="group" aria-label="Drawing">{drawn}</div>'
            return [nodes.raw("", box, format="html")]

    app.add_directive("drawing", Drawing)
    app.add_css_file("drawing.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
