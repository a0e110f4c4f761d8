"""``flowfactory runs``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowfactory.cli.options import typed_path
from flowfactory.cli.output import say, show_json
from flowfactory.control_characters import escape_controls

if TYPE_CHECKING:
    from flowfactory.runs.listing import RunState


def list_runs(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", parser=typed_path, help="Where they lie; runs when left out.")
    ] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array, for programs.")] = False,
) -> None:
    """List the runs in a folder: state, progress, best held-out score."""
    from flowfactory.runs import listing

    found = listing.list_runs(folder)
    if as_json:
        show_json([run.as_json() for run in found], indent=2)
        return
    for line in _table([_HEAD, *(_row(run, folder) for run in found)]) if found else (f"no runs in {folder}",):
        say(line)


_HEAD = ("run", "state", "iterations", "best score", "algorithm", "model")


def _row(run: RunState, folder: Path) -> tuple[str, ...]:
    from flowfactory.runs.facts import tell_progress

    name = run.path.relative_to(folder).as_posix()
    score = f"{_label(run.score_name or '')} {run.score}" if run.score else "–"
    progress = tell_progress(run.done, run.planned, "/")
    return (str(folder) if name == "." else name, run.state, progress, score, run.algorithm or "–", run.model or "–")


def _label(score: str) -> str:
    """``taste`` of ``eval/taste/mean``."""
    return score.removeprefix("eval/").removesuffix("/mean")


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of which each column begins at one place."""
    shown = [[escape_controls(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
