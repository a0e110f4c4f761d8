"""``flowfactory run``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowfactory.cli.options import Config, Nproc, Plugins, Sets, typed_path
from flowfactory.cli.output import show, warn
from flowfactory.cli.rehearsal import rehearse
from flowfactory.distributed import environment, launch
from flowfactory.postponed_imports import postponed_imports, without_collections

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig
    from flowfactory.runs.directory import RunDirectory


def run(
    config: Config,
    sets: Sets = None,
    plugin: Plugins = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", parser=typed_path, help="The run directory; runs/<name of the config> when left out."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the run directory.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print the resolved config; read no weights.")] = False,
    nproc: Nproc = None,
    nnodes: Annotated[int, typer.Option(metavar="N", help="On how many nodes this command is given.")] = 1,
    node_rank: Annotated[int | None, typer.Option(metavar="N", help="Which of them this is, from 0.")] = None,
    rendezvous: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where node 0 waits for the others.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print warnings, errors and the summary at the end alone.")] = False,
    max_restarts: Annotated[int, typer.Option(metavar="N", help="How often to start again when ranks die or are lost.")] = 3,
) -> None:
    """Train as CONFIG says."""
    from flowfactory.config import loading

    wanted = launch.Launch(nproc, nnodes, node_rank, rendezvous, max_restarts)
    wanted.check(os.environ)
    resume = resume or environment.is_restart()
    if dry_run:
        check = partial(_check, config, sets, plugin, out)
        # what is wrong without PyTorch may be right with it: no error is told but one that is made with it
        if "torch" in sys.modules or not rehearse(partial(without_torch, check)):
            check()
        return
    resolved = loading.load(config, sets or [], plugin or [], out)
    if not wanted.starts_ranks:
        _train(resolved, resume, quiet)
        return
    from flowfactory.distributed.supervisor import check_devices, start

    check_devices(wanted, resolved.device)
    options = [*(["--out", str(out)] if out else []), *(["--resume"] if resume else []), *(["--quiet"] if quiet else [])]
    options += [part for file in plugin or [] for part in ("--plugin", str(file))]
    options += [part for assignment in sets or [] for part in ("--set", assignment)]
    # -P: the folder that this is called in is no place to import from, as it is not for the installed command
    command = [sys.executable, "-P", "-m", "flowfactory", "run", *options, "--", config]
    with _owned_by_first_node(resolved, wanted) as variables:
        start(command, wanted, warn, variables)


PLUGINS = (
    *("awm", "chroma", "crd", "distill", "dpo", "flux", "grpo", "hunyuan_video", "krea", "lumina2", "nft", "qwen_image"),
    *("rewards", "sana", "sd3", "sft", "tiny", "wan", "z_image"),
)
OURS = ("flowfactory", *(f"flowfactory_{name}" for name in PLUGINS))
"""Packages that do with PyTorch, as they are imported, nothing that takes more than its names."""


def without_torch(check: Callable[[], None]) -> None:
    """Do ``check``, for which PyTorch is imported as soon as more than its names is needed."""
    with postponed_imports("torch", "safetensors.torch", importers=OURS):
        check()


def _check(config: str, sets: list[str] | None, plugin: list[Path] | None, out: Path | None) -> None:
    """Show the resolved config. UserError: something is wrong with it, or with what it names, as far as configs tell."""
    from flowfactory.config import loading, yaml
    from flowfactory.config.idle_keys import idle_keys
    from flowfactory.training.assembly import Assembly
    from flowfactory.training.prompts import prepare_prompts, remarks

    resolved = loading.load(config, sets or [], plugin or [], out)
    for sentence in idle_keys(resolved):
        warn(f"warning: {sentence}")
    Assembly(resolved)
    train, heldout = prepare_prompts(resolved)
    for sentence in remarks(resolved, train, heldout):
        warn(f"warning: {sentence}")
    show(yaml.dump(resolved).rstrip("\n"))


@contextmanager
def _owned_by_first_node(config: RunConfig, wanted: launch.Launch) -> Iterator[dict[str, str]]:
    """What tells the ranks that the run directory is theirs, through all restarts. UserError: it is somebody else's."""
    from flowfactory.runs.directory import RunDirectory
    from flowfactory.runs.lock import ENVIRONMENT
    from flowfactory.runs.ownership import own

    if wanted.node_rank:
        yield {}
        return
    with own(RunDirectory(config.output.dir), warn) as lock:
        yield {ENVIRONMENT: lock.token}


def _train(config: RunConfig, resume: bool, quiet: bool) -> None:
    with without_collections():
        from rich.console import Console

        from flowfactory.distributed.process_group import join_process_group
        from flowfactory.runs.estimate.room import find_room
        from flowfactory.runs.terminal import Terminal
        from flowfactory.runs.train import train

    terminal = Terminal(Console(), quiet)
    with join_process_group(config, partial(find_room, config, terminal.say), terminal.say) as ranks:
        if not ranks.leads:
            train(config, resume, ranks=ranks)
            return
        try:
            directory = train(config, resume, [terminal], terminal.say, ranks)
        finally:
            terminal.close()
        _print_summary(directory, terminal.show)


def _print_summary(directory: RunDirectory, say: Callable[[str], None]) -> None:
    from flowfactory.runs.doctor.diagnosis import diagnose
    from flowfactory.runs.doctor.reading import read_table
    from flowfactory.runs.report.page import write_report
    from flowfactory.runs.score_format import tell_change

    records = directory.records()
    for sentence in tell_change(records):
        say(sentence)
    table, _ = read_table(directory.path, say)
    if findings := diagnose(table):
        more = f"all {len(findings)} findings" if len(findings) > 1 else "what to change"
        say(f"doctor: {findings[0].what}; run flowfactory doctor {directory.path} for {more}")
    try:
        say(f"report: {write_report(directory.path, say)}")
    except OSError as error:  # the run is done and saved
        say(f"warning: {directory.report} cannot be written ({error.strerror}); write it with flowfactory report")
