"""``flowfactory sample`` and ``flowfactory eval``: drawing with a run's weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowfactory.cli.options import Checkpoint, Nproc, Plugins, RunFolder, Sets, Trusted, typed_checkpoint, typed_path
from flowfactory.cli.output import say, show_json, warn
from flowfactory.cli.ranks import start_ranks
from flowfactory.errors import UserError

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig
    from flowfactory.distributed.ranks import Ranks
    from flowfactory.runs.directory import RunDirectory
    from flowfactory.training.setup import Run
    from flowfactory.types import Prompt


def sample(
    directory: RunFolder,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT…", help="What to draw.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", parser=typed_path, help="A file of prompts, as in a config, beside PROMPTs."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", parser=typed_path, help="A picture that every PROMPT brings. May repeat."),
    ] = None,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=typed_path, help="The video that every PROMPT brings.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures a prompt.")] = 1,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", parser=typed_path, help="Where to; RUN/samples/drawn when left out.")
    ] = None,
    checkpoint: Checkpoint = None,
    sets: Sets = None,
    plugin: Plugins = None,
    trusted: Trusted = False,
    nproc: Nproc = None,
) -> None:
    """Draw PROMPTs with a run's weights."""
    from flowfactory.data import media
    from flowfactory.distributed.process_group import join_process_group
    from flowfactory.runs import sample_index
    from flowfactory.runs.directory import RunDirectory
    from flowfactory.training.evaluation import evaluate

    _require_files([*(image or ()), *([video] if video else ())])
    where, chosen = RunDirectory(directory), typed_checkpoint(checkpoint)
    config = where.load_config(sets or [], plugin or [], trusted)
    wanted = _read_wanted(config, prompts or (), file, tuple(image or ()), video)
    folder = _make_folder(out or where.drawn())
    if start_ranks(nproc, config.device):
        return
    with join_process_group(config) as ranks:
        run, _ = _restore(where, config, chosen, ranks, scores=False, drawn=wanted)
        drawn = evaluate(run.sampler, run.assembly, run.config, wanted, count, score=False, ranks=ranks)
    number, written = 0, list[tuple[str, str]]()
    for medium, text in zip(drawn.media, drawn.prompts[: len(drawn.media)], strict=True):
        while any(folder.glob(f"{number:03d}.*")):
            number += 1
        path = media.write_media(medium, folder / f"{number:03d}", run.sampler.frame_rate)
        written.append((path.name, text))
        say(str(path))
    if written:
        sample_index.append(folder, written)


def _read_wanted(
    config: RunConfig, texts: Iterable[str], file: Path | None, images: tuple[Path, ...], video: Path | None
) -> list[Prompt]:
    """What is to be drawn, ``texts`` with the ``images`` and the ``video``, then those of the ``file``.

    UserError: there is nothing, or the model does not take it.
    """
    from dataclasses import replace

    from flowfactory.data.prompts import check_files, check_media, check_picture_tokens, read_prompts
    from flowfactory.types import Prompt

    fps = config.prompts.video_fps
    wanted = [Prompt(text, images=images, video=video, video_fps=fps) for text in texts]
    wanted += read_prompts(file, fps) if file else ()
    wanted = [replace(prompt, index=index) for index, prompt in enumerate(wanted)]
    if not wanted:
        raise UserError("nothing to draw: give a PROMPT, or a file with --prompts")
    check_media(wanted, config.model.takes, getattr(config.model, "name", "model"))
    check_files(wanted, config.model, config.evaluation.canvas(config.sampling).frames)
    check_picture_tokens(wanted, config.model, config.distributed.context)
    return wanted


def _make_folder(folder: Path) -> Path:
    """``folder``, in which files can be made. UserError: they cannot."""
    from flowfactory.atomic_files import probe

    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}; choose another folder with --out") from error
    return folder


def _require_files(paths: Iterable[Path]) -> None:
    from flowfactory.config.paths import file_error

    for path in paths:
        if reason := file_error(path):
            raise UserError(reason)


def evaluate_run(
    directory: RunFolder,
    checkpoint: Checkpoint = None,
    sets: Sets = None,
    plugin: Plugins = None,
    trusted: Trusted = False,
    nproc: Nproc = None,
) -> None:
    """Score a run's weights on its held-out prompts."""
    from flowfactory.distributed.process_group import join_process_group
    from flowfactory.runs.directory import RunDirectory
    from flowfactory.training.evaluation import evaluate

    where, chosen = RunDirectory(directory), typed_checkpoint(checkpoint)
    config = where.load_config(sets or [], plugin or [], trusted, scores=True)
    if not config.prompts.held_out:
        raise UserError(f"{directory}: prompts.heldout is not set; give one with --set prompts.heldout=FILE")
    if start_ranks(nproc, config.device):
        return
    with join_process_group(config) as ranks:
        run, path = _restore(where, config, chosen, ranks)
        result = evaluate(run.sampler, run.assembly, run.config, run.heldout, keep=0, ranks=ranks)
        if ranks.leads:
            show_json({"checkpoint": str(path), **result.metrics()})


def _restore(
    where: RunDirectory,
    config: RunConfig,
    checkpoint: int | str | None,
    ranks: Ranks,
    scores: bool = True,
    drawn: Sequence[Prompt] = (),
) -> tuple[Run, Path]:
    """A run that draws with the weights that evaluations do, and its checkpoint, of which nothing else is read."""
    from flowfactory.runs.checkpoints import load, lookup
    from flowfactory.runs.checkpoints.manifest import Manifest
    from flowfactory.runs.checkpoints.roles import WEIGHTS, kept_role
    from flowfactory.runs.held_out_scores import choose_checkpoint
    from flowfactory.runs.resume import check_base
    from flowfactory.training.plans import EVALUATION
    from flowfactory.training.setup import prepare_run

    average = EVALUATION if config.evaluation.ema else None
    roles = [WEIGHTS, *([] if average is None else [kept_role(average)])]
    tell_of_checkpoints = warn if ranks.leads else _silent
    iteration = choose_checkpoint(where, config, checkpoint, tell_of_checkpoints, ranks)
    path = lookup.find(where.checkpoints, iteration, tell_of_checkpoints, roles, ranks)
    check_base(Manifest.read(path).fixed, config)
    tell = _pass_on_warnings if ranks.leads else _silent
    restored = prepare_run(config, say=tell, trackers=False, ranks=ranks, scores=scores, trains=False, drawn=drawn)
    load.load_to_draw(path, restored.policy, average)
    restored.assembly.hooks.run_started(restored.info, restored.policy)
    return restored, path


def _silent(sentence: str) -> None:
    """What ranks other than the leading one say."""


def _pass_on_warnings(sentence: str) -> None:
    """What else a run says would stand between what these commands print for others to read."""
    if sentence.startswith("warning: "):
        warn(sentence)
