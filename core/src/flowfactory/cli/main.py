"""The command line: all commands, and what their errors mean for the exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from flowfactory.atomic_files import disk_fault
from flowfactory.cli import (
    cache,
    check,
    doctor,
    estimate,
    export,
    init,
    licences,
    plugins,
    plugins_check,
    plugins_new,
    report,
    run,
    runs,
    sample,
    serve,
)
from flowfactory.cli.examples import epilog
from flowfactory.cli.output import contain_libraries, rank_prefix, say, warn
from flowfactory.cli.usage import usage_error
from flowfactory.discovery.installed_version import installed_versions
from flowfactory.distributed.cuda_allocator import let_segments_grow
from flowfactory.distributed.environment import read_environment
from flowfactory.distributed.hangup import outlive_readers
from flowfactory.distributed.outcome import to_outcome
from flowfactory.distributed.rank_process import die_with_parent, is_supervised, report_outcome
from flowfactory.errors import Interrupted, RunError, UserError
from flowfactory.quiet_libraries import quieten

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, context_settings=HELP)
plugins_app = typer.Typer(help="What is installed.", no_args_is_help=True)
plugins_app.command("list")(plugins.list_plugins)
plugins_app.command("show")(plugins.show_plugin)
plugins_app.command("new")(plugins_new.new)
plugins_app.command("check")(plugins_check.check)
app.add_typer(plugins_app, name="plugins")
cache_app = typer.Typer(help="The cache of encoded prompts: what is in it, and clearing it.", invoke_without_command=True)
cache_app.callback()(cache.show_unless_told)
cache_app.command("show")(cache.show)
cache_app.command("clear")(cache.clear)
app.add_typer(cache_app, name="cache")
app.command()(init.init)
app.command()(check.check)
app.command()(check.with_all_findings(run.run))
app.command()(sample.sample)
app.command("eval")(sample.evaluate_run)
app.command()(export.export)
app.command()(estimate.estimate)
app.command()(report.report)
app.command("runs")(runs.list_runs)
app.command()(doctor.doctor)
app.command()(plugins.schema)
app.command()(serve.serve)
app.command()(licences.licences)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(", ".join(f"{name} {version}" for name, version in installed_versions()))
        raise typer.Exit


@app.callback(epilog=epilog(""))
def top(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print versions and exit.")
    ] = False,
) -> None:
    """Train image and video generators with reinforcement learning."""


def add_epilogs(commands: typer.Typer, above: str = "") -> None:
    """Have the help of all ``commands`` end with their examples."""
    for command in commands.registered_commands:
        name = command.name or (command.callback.__name__ if command.callback else "")
        command.epilog = epilog(f"{above} {name}".strip())
    for group in commands.registered_groups:
        if group.typer_instance and group.name:
            group.epilog = epilog(group.name)
            add_epilogs(group.typer_instance, group.name)


add_epilogs(app)


def _call(commands: typer.Typer) -> int:
    """The exit code of the command that was typed. UserError: it was typed wrong."""
    try:
        code = commands(prog_name="flowfactory", standalone_mode=False)
    except Exception as error:
        if (sentence := usage_error(error)) is not None:
            raise UserError(sentence) from error
        if isinstance(error, typer.Abort) or not hasattr(error, "show"):
            raise
        error.show()  # the help, where a command is given nothing
        return 2
    return code if isinstance(code, int) else 0


def main() -> None:
    """The command line: exit code 2 for a user's mistake, 1 for a run that had to stop, 130 when asked to stop.

    A rank says to the process that started it how it ended, and that one speaks for all.
    """
    quieten()
    let_segments_grow(os.environ)
    contain_libraries()
    outlive_readers()
    if is_supervised():
        die_with_parent()
        try:
            _call(app)
        except Exception as error:  # whatever it is, the parent shows it
            report_outcome(error)
            sys.exit(1)
        report_outcome(None)
        return
    try:
        sys.exit(_call(app))
    except UserError as error:
        for sentence in error.sentences:
            warn(f"error: {rank_prefix()}{sentence}")
        sys.exit(2)
    except RunError as error:
        warn(f"stopped: {rank_prefix()}{error}")
        sys.exit(1)
    except Interrupted as error:
        warn(str(error))
        sys.exit(130)
    except typer.Abort:  # Ctrl+C, where nothing is to be saved
        warn("stopped at once")
        sys.exit(130)
    except Exception as error:
        if told := disk_fault(error, "what is printed"):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())  # what is left to print would fail again, on the way out
            warn(f"stopped: {told}")
            sys.exit(1)
        found = read_environment(os.environ)
        outcome = to_outcome(error, found.rank) if found else None
        if outcome is None or outcome.kind != "lost":
            raise
        warn(f"stopped: {outcome.message}")  # the rank that it lost says more
        sys.exit(1)
