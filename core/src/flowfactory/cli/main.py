"""``flowfactory``: run, estimate, plugins, sample, eval, export, report, schema, serve."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowfactory.distributed import launch
from flowfactory.errors import Interrupted, RunError, UserError

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig
    from flowfactory.runs.directory import RunDirectory
    from flowfactory.training.iteration import Run

app = typer.Typer(
    help="Train image and video generators with reinforcement learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
plugins_app = typer.Typer(help="What is installed.", no_args_is_help=True)
app.add_typer(plugins_app, name="plugins")

Plugins = Annotated[list[Path] | None, typer.Option("--plugin", metavar="FILE", help="A one-file plugin. May repeat.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=value", help="Override a key; YAML. May repeat.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Iteration = Annotated[int | None, typer.Option("--checkpoint", metavar="N", help="The iteration; the newest when left out.")]


@app.command()
def run(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a bundled example.")],
    sets: Sets = None,
    plugin: Plugins = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; runs/<name of the config> when left out.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the run directory.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print the resolved config; read no weights.")] = False,
    nproc: Annotated[int | None, typer.Option(metavar="N", help="Start N ranks on this node, one a GPU.")] = None,
    nnodes: Annotated[int, typer.Option(metavar="N", help="On how many nodes this command is given.")] = 1,
    node_rank: Annotated[int | None, typer.Option(metavar="N", help="Which of them this is, from 0.")] = None,
    rendezvous: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where node 0 waits for the others.")] = None,
    max_restarts: Annotated[int, typer.Option(metavar="N", help="How often to start again when a rank dies.")] = 3,
) -> None:
    """Train as CONFIG says."""
    from flowfactory.config import schema as configs

    wanted = launch.Launch(nproc, nnodes, node_rank, rendezvous, max_restarts)
    wanted.insist(os.environ)
    resolved = configs.load(config, sets or [], plugin or [], out)
    if dry_run:
        from flowfactory.training.assembly import Assembly
        from flowfactory.training.iteration import read_prompts

        Assembly(resolved)
        read_prompts(resolved)
        typer.echo(configs.dump(resolved), nl=False)
        return
    if not wanted.several:
        _train(resolved, resume or launch.restarted())
        return
    wanted.insist_on_devices(resolved.device)
    options = [*(["--out", str(out)] if out else []), *(["--resume"] if resume else [])]
    options += [part for file in plugin or [] for part in ("--plugin", str(file))]
    options += [part for assignment in sets or [] for part in ("--set", assignment)]
    # -P: the folder that this is called in is no place to import from, as it is not for the installed command
    launch.start([sys.executable, "-P", "-m", "flowfactory", "run", *options, "--", config], wanted, _warn)


def _train(config: RunConfig, resume: bool) -> None:
    from rich.console import Console

    from flowfactory.distributed.ranks import join
    from flowfactory.runs.report import Terminal
    from flowfactory.training.iteration import train

    with join(config) as ranks:
        if not ranks.leads:
            train(config, resume, ranks=ranks)
            return
        terminal = Terminal(Console())
        try:
            directory = train(config, resume, [terminal], terminal.say, ranks)
        finally:
            terminal.close()
        _conclude(directory, terminal.say)


def _conclude(directory: RunDirectory, say: Callable[[str], None]) -> None:
    from flowfactory.rewards.statistics import hacking
    from flowfactory.runs.report import write_report

    report = write_report(directory)
    records = [record for record in directory.records() if any(key.startswith("eval/") for key in record)]
    if len(records) > 1:
        for key in (key for key in records[-1] if key.startswith("eval/") and key.endswith("/mean")):
            label = key.split("/")[1]
            say(f"held-out {label}: {records[0][key]:.4f} before, {records[-1][key]:.4f} after")
    for sentence in hacking(directory.records()):
        say(f"warning: {sentence}")
    say(f"report: {report}")


@app.command()
def sample(
    directory: RunFolder,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT…", help="What to draw.")] = None,
    file: Annotated[Path | None, typer.Option("--prompts", help="A file of prompts, .txt or .jsonl, beside PROMPTs.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture that every PROMPT brings. May repeat.")] = None,
    video: Annotated[Path | None, typer.Option(help="The video that every PROMPT brings.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures a prompt.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Where to; RUN/samples/drawn when left out.")] = None,
    checkpoint: Iteration = None,
    sets: Sets = None,
) -> None:
    """Draw PROMPTs with a run's weights."""
    from dataclasses import replace

    from flowfactory.data import media
    from flowfactory.data.prompts import insist, read
    from flowfactory.runs.directory import RunDirectory
    from flowfactory.training.evaluation import evaluate
    from flowfactory.types import Prompt

    for path in (*(image or ()), *([video] if video else ())):
        if not path.is_file():
            raise UserError(f"no file {path}")
    wanted = [Prompt(text, images=tuple(image or ()), video=video) for text in prompts or ()] + list(read(file) if file else ())
    wanted = [replace(prompt, index=index) for index, prompt in enumerate(wanted)]
    if not wanted:
        raise UserError("nothing to draw: give a PROMPT, or a file with --prompts")
    config = RunDirectory(directory).load_config(sets or [])
    insist(wanted, config.model.takes, getattr(config.model, "name", "model"))
    restored, _ = _restored(directory, checkpoint, sets)
    folder = out or RunDirectory(directory).samples / "drawn"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = evaluate(restored.sampler, restored.assembly, restored.config, wanted, count, score=False).media
    number = 0
    for medium in drawn:
        while any(folder.glob(f"{number:03d}.*")):
            number += 1
        typer.echo(str(media.write(medium, folder / f"{number:03d}", restored.sampler.frame_rate)))


@app.command(name="eval")
def evaluate_run(directory: RunFolder, checkpoint: Iteration = None, sets: Sets = None) -> None:
    """Score a run's weights on its held-out prompts."""
    import json

    from flowfactory.training.evaluation import evaluate

    restored, path = _restored(directory, checkpoint, sets)
    if not restored.heldout:
        raise UserError(f"{directory}: prompts.heldout is not set; give one with --set prompts.heldout=FILE")
    result = evaluate(restored.sampler, restored.assembly, restored.config, restored.heldout)
    typer.echo(json.dumps({"checkpoint": str(path), **result.metrics()}))


def _restored(directory: Path, iteration: int | None, sets: list[str] | None) -> tuple[Run, Path]:
    from flowfactory.runs.checkpoints import save
    from flowfactory.runs.directory import RunDirectory
    from flowfactory.training.iteration import prepare

    where = RunDirectory(directory)
    config = where.load_config(sets or [])
    path = save.find(where.checkpoints, iteration, _warn)
    restored = prepare(config, trackers=False)
    restored.assembly.hooks.run_started(restored.info, restored.policy)
    save.load(path, restored.policy)
    return restored, path


def _warn(sentence: str) -> None:
    typer.echo(sentence, err=True)


@app.command()
def export(
    directory: RunFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is not there yet.")],
    checkpoint: Iteration = None,
    weights: Annotated[str | None, typer.Option(help="Kept weights, such as 'evaluation'; else the trained ones.")] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="float32|bf16", help="Of a full fine-tune; the run's own when left out.")
    ] = None,
) -> None:
    """Write a run's weights to OUT, as diffusers loads them, with a model card."""
    from flowfactory.runs.directory import RunDirectory
    from flowfactory.runs.export import export as write_export
    from flowfactory.types import DTYPES

    if precision is not None and precision not in DTYPES:
        raise UserError(f"--precision {precision}: write one of {', '.join(DTYPES)}")
    typer.echo(str(write_export(RunDirectory(directory), out, checkpoint, weights, precision, _warn)))


@app.command()
def estimate(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a bundled example.")],
    sets: Sets = None,
    plugin: Plugins = None,
    nproc: Annotated[int, typer.Option(metavar="N", min=1, help="How many ranks share the work.")] = 1,
    card: Annotated[float | None, typer.Option(metavar="GIB", help="Memory of a GPU; of the one here when left out.")] = None,
) -> None:
    """Tell what a run of CONFIG takes of each rank's memory; reads no weights."""
    import torch
    from rich.console import Console

    from flowfactory.config import schema as configs
    from flowfactory.runs.estimate import trace as estimates

    resolved = configs.load(config, sets or [], plugin or [])
    here = torch.cuda.is_available()
    if card is not None and resolved.device == "cpu":
        raise UserError("--card is about a GPU, and device is cpu; leave one of them out")
    cuda = card is not None or resolved.device.startswith("cuda") or (resolved.device == "auto" and here)
    if card is None and cuda and here:
        card = torch.cuda.get_device_properties(0).total_memory / estimates.GIB
    found = estimates.estimate(resolved, nproc, cuda)
    Console().print(estimates.table(found))
    if card is not None:
        typer.echo(estimates.verdict(found, resolved, round(card * estimates.GIB)))


@app.command()
def report(directory: RunFolder) -> None:
    """Write RUN/report.html anew from what is on disk."""
    from flowfactory.runs.directory import RunDirectory
    from flowfactory.runs.report import write_report

    where = RunDirectory(directory)
    where.insist()  # the config itself may be of plugins and prompts that are not on this machine
    typer.echo(str(write_report(where)))


@app.command()
def schema(plugin: Plugins = None) -> None:
    """Print the JSON schema of a config, with every installed component."""
    import json

    from flowfactory.config.schema import schema_type
    from flowfactory.discovery.catalogue import discover

    typer.echo(json.dumps(schema_type(discover(plugin or [])).model_json_schema(), indent=2))


@app.command()
def serve(
    reward: Annotated[str, typer.Argument(metavar="REWARD", help="A reward's name, or a YAML file with one and its options.")],
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="key=value", help="An option; YAML. May repeat.")] = None,
    plugin: Plugins = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is all that this machine has.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any that is free.")] = 8100,
    token_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The environment variable with the token to ask for.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    queue: Annotated[int, typer.Option(metavar="N", min=0, help="Requests that wait while one is computed.")] = 64,
    max_request: Annotated[int, typer.Option(metavar="MIB", min=1, help="The largest request.")] = 256,
    max_megapixels: Annotated[int, typer.Option(metavar="N", min=1, help="Of all media of a request together.")] = 256,
) -> None:
    """Compute REWARD for others, over HTTP."""
    from flowfactory.rewards import server as serving

    serving.insist_on_extra()
    from flowfactory.distributed.ranks import device_of

    name, config = serving.reward_of(reward, sets or [], plugin or [])
    token = serving.token_of(token_env)
    chosen = device_of(device)
    with serving.bound(host, port) as listener:
        if token is None and not serving.is_local(host):
            _warn(f"warning: whoever reaches {host} may ask for scores; ask them for a token with --token-env NAME")
        limits = serving.Limits(max_request * 2**20, max_megapixels * 10**6, queue)
        serving.run(serving.Service(name, config, plugin or [], str(chosen), limits, token), listener, _say)


def _say(sentence: str) -> None:
    print(sentence, flush=True)  # whoever reads a pipe waits for the address


@plugins_app.command("list")
def list_plugins(plugin: Plugins = None) -> None:
    """Every component by kind, and the plugins that could not be loaded."""
    from flowfactory.discovery.catalogue import discover

    catalogue = discover(plugin or [])
    for kind, components in catalogue.components.items():
        for name in sorted(components):
            typer.echo(f"{kind:<10} {name:<18} {components[name].plugin} {components[name].version}".rstrip())
    for broken in catalogue.broken:
        typer.echo(f"{'broken':<10} {broken.plugin:<18} {broken.reason}")


@plugins_app.command("show")
def show_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A component, as 'plugins list' names it.")],
    plugin: Plugins = None,
) -> None:
    """What a component is, and its options."""
    from flowfactory.config.schema import choice
    from flowfactory.discovery.catalogue import discover, suggestion

    catalogue = discover(plugin or [])
    found = [components[name] for components in catalogue.components.values() if name in components]
    if not found:
        everything = {known for components in catalogue.components.values() for known in components}
        raise UserError(f"no component called {name!r}{suggestion(name, everything)}")
    for component in found:
        typer.echo(f"{component.kind} {component.name}, from {component.plugin} {component.version}".rstrip())
        if component.kind == "example":
            typer.echo(Path(component.spec).read_text(encoding="utf-8"))
            continue
        config = choice(catalogue, component.kind, [component.name])
        typer.echo((config.__doc__ or "").strip())
        for key, field in config.model_fields.items():
            if key == "name":
                continue
            default = "required" if field.is_required() else f"default {_shown(field.default)}"
            typer.echo(f"  {key}: {default}" + (f"; {field.description}" if field.description else ""))


def _shown(value: object) -> str:
    """A default as a user would write it in YAML."""
    import json

    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value) + "}"
    return json.dumps(value, default=str)


def _quieten() -> None:
    """Libraries' own progress bars and hints would stand between the lines of a run."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def main() -> None:
    """The command line: exit code 2 for a user's mistake, 1 for a run that had to stop, 130 when asked to stop.

    A rank says to the process that started it how it ended, and that one speaks for all.
    """
    _quieten()
    if launch.watched():
        launch.live_with_parent()
        try:
            app(standalone_mode=False)
        except Exception as error:  # whatever it is, the parent shows it
            launch.report(error)
            sys.exit(1)
        launch.report(None)
        return
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {_whose()}{error}", err=True)
        sys.exit(2)
    except RunError as error:
        typer.echo(f"stopped: {_whose()}{error}", err=True)
        sys.exit(1)
    except Interrupted as error:
        typer.echo(str(error), err=True)
        sys.exit(130)
    except Exception as error:
        found = launch.environment(os.environ)
        outcome = launch.outcome_of(error, found.rank) if found else None
        if outcome is None or outcome.kind != "lost":
            raise
        typer.echo(f"stopped: {outcome.message}", err=True)  # the rank that it lost says more
        sys.exit(1)


def _whose() -> str:
    """Which rank it is, where several processes write on one terminal."""
    try:
        found = launch.environment(os.environ)
    except UserError:
        return ""
    return f"rank {found.rank}: " if found and found.world_size > 1 else ""
