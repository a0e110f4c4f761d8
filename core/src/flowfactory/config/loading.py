"""A config file to a checked RunConfig."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowfactory.checkpoint_names import FOLDER, list_checkpoints
from flowfactory.config.checking import check
from flowfactory.config.findings import MOST, WrongConfig, locate
from flowfactory.config.overrides import apply_override
from flowfactory.config.paths import CommandLineText, check_length, file_error, resolve_path
from flowfactory.config.schema import RunConfig
from flowfactory.config.text_files import read_text
from flowfactory.config.wording import written
from flowfactory.config.yaml import parse_yaml
from flowfactory.discovery.discover import Approve, discover
from flowfactory.errors import UserError
from flowfactory.suggestions import did_you_mean


def load(
    source: str | Path,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path] = (),
    out: Path | None = None,
) -> RunConfig:
    """The config in the file ``source`` (or the bundled example of that name) with ``overrides`` set on top.

    UserError: a line for each mistake, with the file, the key and what is meant or allowed. Reads no weights.
    """
    path = find_config(source, check_given(plugins))
    return resolve(parse(read_text(path, path.name), path.name), path, overrides, plugins, out)


def examine(
    source: str | Path,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path] = (),
    out: Path | None = None,
) -> tuple[RunConfig | None, list[str]]:
    """As :func:`load`, with a line for each mistake beside what is left of the config, which lacks what is wrong."""
    try:
        return load(source, overrides, plugins, out), []
    except UserError as error:
        wrong = error.__cause__
        if isinstance(wrong, WrongConfig):
            return wrong.rest, wrong.describe(find_config(source, plugins).name, overrides, MOST)
        return None, list(error.sentences)


def check_given(plugins: Sequence[Path]) -> Sequence[Path]:
    """``plugins``, as they were given with --plugin. UserError: one is no file."""
    for plugin in plugins:
        if reason := file_error(plugin):
            raise UserError(f"--plugin: {reason}")
    return plugins


def parse(text: str, name: str) -> dict[str, Any]:
    """The mapping that the text of the config ``name`` is. UserError: it is none."""
    raw = parse_yaml(text, name)
    if not isinstance(raw, dict):
        got = "there is nothing in it" if raw is None else f"got {written(raw)}"
        raise UserError(f"{name}: {got}; give a mapping with model, algorithm, rewards, prompts, …")
    return raw


def resolve(
    raw: dict[str, Any],
    path: Path,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path] = (),
    out: Path | None = None,
    approve: Approve | None = None,
    unread: Collection[str] = (),
) -> RunConfig:
    """The typed config of ``raw``, which the file at ``path`` holds. UserError: as :func:`load`.

    ``unread`` are the keys of which nothing has to be on this machine, such as "prompts.train" and "rewards".

    ``approve`` is asked about the plugins that ``raw`` names as text, which nobody gave by hand.
    """
    for assignment in overrides:
        raw = apply_override(raw, assignment)
    listed = raw.get("plugins") or []
    if plugins and isinstance(listed, list):
        raw["plugins"] = [*listed, *(Path(plugin).resolve() for plugin in plugins)]
    output = raw.get("output") or {}
    if isinstance(output, dict) and (chosen := _choose_directory(output, path, out)):
        raw["output"] = {**output, "dir": chosen.absolute()}
    return validate(raw, path.name, path.parent, overrides, approve, unread)


def _choose_directory(output: Mapping[str, Any], path: Path, out: Path | None) -> Path | None:
    """The run directory of the config in ``path``, from where the command was given; None: ``output`` says it.

    A run directory's own config is about that directory, wherever it was moved or copied to.
    """
    if out is not None:
        return Path(out)
    if is_run_config(path) and not isinstance(output.get("dir"), CommandLineText):
        return path.parent
    return None if "dir" in output else Path("runs") / path.stem


def is_run_config(path: Path) -> bool:
    """Whether it is the config that a run wrote into its directory: what else a run leaves behind is beside it."""
    folder = path.parent
    return path.name == "config.yaml" and (
        all((folder / name).is_file() for name in ("run.json", "metrics.jsonl")) or bool(list_checkpoints(folder / FOLDER))
    )


def find_config(source: str | Path, plugins: Sequence[Path] = ()) -> Path:
    """The config file: an existing path, that of a run directory, or the bundled example of that name. UserError: none."""
    path = Path(os.path.expanduser(source))
    try:
        check_length(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    if os.path.isfile(path):
        return path
    if is_run_config(path / "config.yaml"):
        return path / "config.yaml"
    catalogue = discover(plugins)
    examples = catalogue.components["example"]
    if any(str(source) in (example.name, example.full_name) for example in examples.values()):
        return Path(catalogue.find("example", str(source)).spec)
    is_path = path.suffix or len(path.parts) > 1  # no plugin was to bring it
    near = did_you_mean(str(source), examples) if is_path else catalogue.instead_of("example", str(source))
    raise UserError(f"no file {source}, and no example of that name{near}")


def validate(
    raw: Mapping[str, Any],
    source: str = "config",
    folder: Path | None = None,
    overrides: Sequence[str] = (),
    approve: Approve | None = None,
    unread: Collection[str] = (),
) -> RunConfig:
    """The typed config of the mapping ``raw``; relative paths are relative to ``folder``. UserError: as :func:`resolve`."""
    files = _plugin_files(raw, source, folder, overrides)
    by_hand = {file for file, name in zip(files, raw.get("plugins") or (), strict=True) if _is_by_hand(name)}

    def ask(file: Path, content: bytes) -> None:
        if approve is not None and file not in by_hand:
            approve(file, content)

    catalogue = discover(files, ask)
    try:
        return check(raw, catalogue, folder, unread)
    except WrongConfig as error:
        raise UserError(*error.describe(source, overrides)) from error


def _is_by_hand(file: str | Path) -> bool:
    return isinstance(file, Path | CommandLineText)


def _plugin_files(raw: Mapping[str, Any], source: str, folder: Path | None, overrides: Sequence[str]) -> list[Path]:
    files = raw.get("plugins") or []
    place = locate("plugins", source, overrides)
    if not isinstance(files, list | tuple) or not all(isinstance(file, str | Path) for file in files):
        meant = f"; did you mean [{files}]?" if isinstance(files, str) else ""
        raise UserError(f"{place}: got {written(files)}; give a list of files{meant}")
    try:
        paths = [resolve_path(file, folder or Path()) for file in files]
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error
    if missing := list(filter(None, map(file_error, paths))):  # what they bring is unknown, and so is what is wrong
        raise UserError(*(f"{place}: {reason}" for reason in missing))
    return paths
