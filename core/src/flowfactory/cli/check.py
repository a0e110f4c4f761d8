"""``flowfactory check``: everything that can be said of a config without training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowfactory.cli.columns import fill, terminal_width
from flowfactory.cli.memory_size import Memory
from flowfactory.cli.options import Config, Plugins, Sets, typed_path
from flowfactory.cli.output import say, show_json, warn
from flowfactory.cli.rehearsal import rehearse
from flowfactory.cli.run import without_torch
from flowfactory.config.findings import SHOWN
from flowfactory.errors import UserError

if TYPE_CHECKING:
    from flowfactory.runs.check.checkup import Checkup
    from flowfactory.runs.check.encoding import Encoding
    from flowfactory.runs.check.memory import Verdict
    from flowfactory.runs.check.sizes import Sizes


def check(
    config: Config,
    sets: Sets = None,
    plugin: Plugins = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", parser=typed_path, help="The run directory, as for run.")
    ] = None,
    nproc: Annotated[int, typer.Option(metavar="N", min=1, help="How many ranks share the work.")] = 1,
    memory: Memory = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 for warnings, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Say everything that is wrong with CONFIG, and how much it will draw, learn and take; trains nothing."""
    task = partial(_check, config, sets or [], plugin or [], out, nproc, memory, strict, as_json)
    # what is wrong without PyTorch may be right with it: no error is told but one that is made with it
    if memory is not None or "torch" in sys.modules or not rehearse(partial(without_torch, task)):
        task()


def _check(
    source: str,
    sets: list[str],
    plugin: list[Path],
    out: Path | None,
    nproc: int,
    memory: int | None,
    strict: bool,
    as_json: bool,
) -> None:
    """UserError's exit code by ``typer.Exit``, once all is said."""
    from flowfactory.runs.check.card import card_memory
    from flowfactory.runs.check.checkup import check_run
    from flowfactory.runs.check.memory import judge_memory

    here = card_memory()
    card = memory if memory is not None else here
    found = check_run(source, sets, plugin, out, nproc, cuda=card is not None)
    verdict = None if found.errors or found.config is None else judge_memory(found.config, nproc, card, here, warn)
    if verdict is not None and verdict.fits is False:
        found.errors.append(f"memory: {verdict.sentence}")
    if as_json:
        show_json(_as_json(source, found, verdict), indent=2)
    else:
        _say(source, found, verdict)
    if found.errors or (strict and found.warnings):
        raise typer.Exit(2)


def _as_json(source: str, found: Checkup, verdict: Verdict | None) -> dict[str, Any]:
    sizes = None if found.sizes is None else {**asdict(found.sizes), "samples": found.sizes.samples}
    encoding = None if found.encoding is None else {**asdict(found.encoding), "folder": str(found.encoding.folder)}
    told = {"config": source, "ok": not found.errors, "errors": found.errors, "warnings": found.warnings}
    return {**told, "sizes": sizes, "encoding": encoding, "memory": None if verdict is None else asdict(verdict)}


def _say(source: str, found: Checkup, verdict: Verdict | None) -> None:
    for sentence in found.errors:
        warn(f"error: {sentence}")
    for sentence in found.warnings:
        warn(f"warning: {sentence}")
    rows = [*_size_rows(found.sizes), *_encoding_rows(found.encoding)]
    if verdict is not None:
        rows.append(("memory", verdict.sentence))
    for name, told in rows:
        first, *others = fill(told, terminal_width() - 18)
        say(f"{name:<16}  {first}")
        for line in others:
            say(f"{'':<16}  {line}")
    counts = [(len(found.errors), "error"), (len(found.warnings), "warning")]
    told = " and ".join(f"{count} {name}{'s' * (count > 1)}" for count, name in counts if count)
    say(f"{source}: {told}" if told else f"{source}: nothing is wrong")


def _size_rows(sizes: Sizes | None) -> list[tuple[str, str]]:
    if sizes is None:
        return []
    learned = f"{sizes.learned:,} to learn" if sizes.learned is not None else "those to learn not known"
    evaluations = f", {sizes.evaluations} evaluation{'s' * (sizes.evaluations > 1)} of {sizes.evaluated:,}"
    steps = f"{sizes.steps} an iteration, {sizes.steps * sizes.iterations:,} in {sizes.iterations:,} iterations"
    what = {"samples": "samples", "targets": "targets", "pairs": "chosen and rejected"}[sizes.learns_from]
    beside = f", and {sizes.beside} target{'s' * (sizes.beside > 1)} beside" if sizes.beside else ""
    drawn = f"{sizes.drawn:,} to draw an iteration" if sizes.drawn else "none to draw an iteration"
    return [
        ("prompts", f"{sizes.train:,} to train on, {sizes.heldout:,} held out"),
        ("an iteration", f"{sizes.groups} prompts x {sizes.group_size} = {sizes.samples:,} {what}{beside}"),
        ("forwards", f"{drawn}, {learned}{evaluations if sizes.evaluations else ''}"),
        ("optimizer steps", steps),
    ]


def _encoding_rows(encoding: Encoding | None) -> list[tuple[str, str]]:
    if encoding is None:
        return []
    from flowfactory.data.cache_folder import format_size

    size = "of a size that is not known before" if encoding.size is None else f"at most about {format_size(encoding.size)}"
    media = f", and {encoding.media} files of pictures, videos or sounds beside" if encoding.media else ""
    media += f", and {encoding.records:,} pictures or videos to learn from" if encoding.records else ""
    free = f"{format_size(encoding.free)} are free"
    count = f"{encoding.prompts:,}"
    count = count if encoding.at_once is None else f"up to {count}, {encoding.at_once:,} at a time"
    return [("encoded prompts", f"{count}, {size}{media}, in {encoding.folder}, where {free}")]


def with_all_findings(run: Callable[..., None]) -> Callable[..., None]:
    """``run``, which, where its config is wrong, says all that ``check`` finds wrong with it beside what it stopped at."""

    @wraps(run)
    def tell_all(**given: Any) -> None:
        try:
            run(**given)
        except UserError as error:
            if len(error.sentences) > SHOWN:  # of which it said that more are to be told when these are mended
                raise
            raise UserError(*dict.fromkeys([*error.sentences, *_others(given)])) from error

    return tell_all


def _others(given: dict[str, Any]) -> list[str]:
    """What else is wrong; nothing where this process is one of several, whose parent tells it."""
    from flowfactory.distributed.rank_process import is_supervised
    from flowfactory.runs.check.checkup import check_run

    if is_supervised():
        return []
    try:
        return check_run(given["config"], given["sets"] or [], given["plugin"] or [], given["out"], given["nproc"] or 1).errors
    except Exception:  # what is told is what the run stopped at
        return []
