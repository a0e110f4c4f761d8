"""The report page of a run, whole in one file: the style, the script, every figure and every picture."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from flowfactory.atomic_files import write_atomically
from flowfactory.control_characters import own_lines
from flowfactory.runs.report.charts import Axis
from flowfactory.runs.report.curves import curves
from flowfactory.runs.report.drift_section import alarms_of, drift_section
from flowfactory.runs.report.gallery import evaluation_gallery, training_gallery
from flowfactory.runs.report.markup import Markup, element, join, raw
from flowfactory.runs.report.run_files import RunFiles, Say, read_run
from flowfactory.runs.report.sections import Section, links, section
from flowfactory.runs.report.verdict import verdict

NAME = "report.html"


def write_report(folder: Path, say: Say = lambda _: None, out: Path | None = None) -> Path:
    """The path of ``report.html`` in the run directory ``folder``, or ``out``: one page that needs nothing else.

    Only from what lies in the directory, and is what a run writes: ``say`` hears of what is left out.
    OSError: the page cannot be written.
    """
    return write_page(report_page(read_run(folder, say), say), out or folder / NAME)


def write_page(page: Markup, path: Path) -> Path:
    """``path``, which now has the page. OSError: it cannot be written."""
    write_atomically(path, own_lines(page))  # without what a terminal obeys, which may print it, or a file cannot hold
    return path


def report_page(run: RunFiles, say: Say) -> Markup:
    """The report of one run."""
    alarms = alarms_of(run)
    axis = Axis(0, max(1, run.last_iteration))
    pictures = [evaluation_gallery(run, say), training_gallery(run, say)]
    charts = [*curves(run, axis), drift_section(run, axis, alarms)]
    return whole_page(f"Run {run.name}", verdict(run, alarms), pictures, charts, settings(run))


def settings(run: RunFiles) -> list[Section]:
    """The config and the versions."""
    rows = [element("tr", element("th", name, scope="row"), element("td", version)) for name, version in run.versions.items()]
    config = element("pre", run.config, tabindex=0, role="group", aria_label="config.yaml", class_="scroll")
    return [section("config", "Config", config), section("versions", "Versions", element("table", rows) if rows else None)]


def whole_page(
    title: str, top: Markup, pictures: Sequence[Section], charts: Sequence[Section], rest: Sequence[Section]
) -> Markup:
    """A page with a heading, what comes first, and sections with links to them; the ``charts`` are zoomed together."""
    shown = [[each for each in part if each.content] for part in (pictures, charts, rest)]
    before, zoomed, after = ([each.markup() for each in part] for part in shown)
    style, script = _own("report.css"), _own("report.js")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        # first: a browser holds to it from there on
        element("meta", http_equiv="Content-Security-Policy", content=policy(style, script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{title} · flowfactory report"),
        element("style", raw(style)),
    )
    body = element(
        "body",
        element("header", element("h1", title), top, links([each for part in shown for each in part])),
        element("main", before, element("div", _zoom_bar(), zoomed) if zoomed else None, after),
        element("dialog", _dialog(), aria_label="Enlarged"),
        element("footer", "Made by flowfactory from the run directory alone; this page fetches nothing."),
        element("script", raw(script)),
    )
    return join(raw("<!doctype html>\n"), element("html", head, body, lang="en"), "\n")


def policy(style: str, script: str) -> str:
    """What a browser lets the page do, whatever stands in it: our style and our script, and what the page itself holds."""
    return (
        f"default-src 'none'; img-src data:; media-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _own(name: str) -> str:
    """A file of this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8").strip("\n")


def _zoom_bar() -> Markup:
    """Which iterations all charts show; without a script there is none."""
    return element(
        "div",
        element("label", "Iterations from", element("input", type="number", id="from", min=0, step=1)),
        element("label", "to", element("input", type="number", id="to", min=0, step=1)),
        element("button", "All", type="button", id="whole", disabled=True),
        class_="toolbar zoom",
        role="group",
        aria_label="The iterations that all charts show",
        hidden=True,
    )


def _dialog() -> Markup:
    return join(
        element("button", "Close", type="button", class_="close"),
        element("p", class_="told"),
        element("div", class_="side"),
    )
