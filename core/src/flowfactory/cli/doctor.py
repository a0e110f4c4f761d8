"""``flowfactory doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from flowfactory.cli.options import RunFolder
from flowfactory.cli.output import say, show_json, warn


def doctor(
    directory: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where something is found.")] = False,
) -> None:
    """Say what keeps a run from learning, and which key to change; while it runs, too."""
    from flowfactory.runs.doctor.diagnosis import diagnose
    from flowfactory.runs.doctor.reading import read_table

    table, state = read_table(directory, warn)
    findings = diagnose(table)
    if as_json:
        show_json({"run": str(directory), "state": state, "findings": [finding.as_json() for finding in findings]}, indent=2)
    else:
        say(f"{directory}: {state}")
        for number, finding in enumerate(findings, 1):
            say(f"{number}. {finding.what}")
            say(f"   {finding.change}")
            say(f"   {finding.page}")
        if not findings:
            finished = table.fact("end.how") == "finished" and table.fact("under_way") is None
            what = "rewards" if table.labels() or not table.column("loss") else "figures"
            say(_describe_nothing(len(table.trained), finished, what))
    if strict and findings:
        raise typer.Exit(1)


def _describe_nothing(iterations: int, finished: bool, what: str) -> str:
    from flowfactory.runs.doctor.table import LEAST

    if iterations >= LEAST:
        return "nothing is wrong, as far as the metrics tell"
    if finished:
        return f"nothing is wrong; how {what} move is not judged: a run of fewer than {LEAST} iterations is too short for that"
    return f"nothing is wrong so far; of how {what} move, rules speak from iteration {LEAST} on"
