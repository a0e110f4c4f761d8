"""Links to the pages of the documentation, whose address is that of the installed package."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import PurePosixPath

from flowfactory.runs.report.markup import Markup, element

PACKAGE, KEY = "flowfactory", "Documentation"


@cache
def address() -> str | None:
    """``https://…/``, as ``[project.urls]`` of the package has it; None where it has none."""
    try:
        urls = metadata(PACKAGE).get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    named = dict(url.split(", ", 1) for url in urls if ", " in url)
    found = named.get(KEY, "")
    return f"{found.rstrip('/')}/" if found.startswith("https://") else None


def link_of(page: str) -> Markup:
    """A link to ``docs/<page>.md#<heading>`` as it is published; where that is not known, the page's name."""
    path, _, heading = page.partition("#")
    where = address()
    if where is None:
        return element("code", page)
    name = PurePosixPath(path).relative_to("docs").with_suffix(".html")
    return element("a", heading or name.stem, href=f"{where}{name}#{heading}" if heading else f"{where}{name}")
