"""The command line: all commands, and what their errors mean for the exit code."""

from __future__ import annotations

import logging
import os
import sys

import typer

from flowfactory.atomic_files import disk_fault
from flowfactory.cli import cache, doctor, estimate, export, licences, plugins, report, run, sample, serve
from flowfactory.cli.output import contain_libraries, rank_prefix, warn
from flowfactory.cli.usage import usage_error
from flowfactory.distributed.cuda_allocator import let_segments_grow
from flowfactory.distributed.environment import read_environment
from flowfactory.distributed.hangup import outlive_readers
from flowfactory.distributed.outcome import to_outcome
from flowfactory.distributed.rank_process import die_with_parent, is_supervised, report_outcome
from flowfactory.errors import Interrupted, RunError, UserError

app = typer.Typer(
    help="Train image and video generators with reinforcement learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
plugins_app = typer.Typer(help="What is installed.", no_args_is_help=True)
plugins_app.command("list")(plugins.list_plugins)
plugins_app.command("show")(plugins.show_plugin)
app.add_typer(plugins_app, name="plugins")
cache_app = typer.Typer(help="The cache of encoded prompts: what is in it, and clearing it.", invoke_without_command=True)
cache_app.callback()(cache.show_unless_told)
cache_app.command("show")(cache.show)
cache_app.command("clear")(cache.clear)
app.add_typer(cache_app, name="cache")
app.command()(run.run)
app.command()(sample.sample)
app.command("eval")(sample.evaluate_run)
app.command()(export.export)
app.command()(estimate.estimate)
app.command()(report.report)
app.command()(doctor.doctor)
app.command()(plugins.schema)
app.command()(serve.serve)
app.command()(licences.licences)


def _quieten() -> None:
    """Libraries' own progress bars and hints would stand between the lines of a run."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which recommends a package on the first import


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
    _quieten()
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
