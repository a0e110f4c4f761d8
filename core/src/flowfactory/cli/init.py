"""``flowfactory init``: a first config, fitted to the card that is here."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowfactory.cli.columns import cut, terminal_width
from flowfactory.cli.completion import completer
from flowfactory.cli.memory_size import GIB, Memory
from flowfactory.cli.options import Plugins, typed_path
from flowfactory.cli.output import say, warn
from flowfactory.errors import UserError

if TYPE_CHECKING:
    from flowfactory.discovery.catalogue import Catalogue

ASSUMED = 24 * GIB
"""Bytes of the card that a config is for where none is here and nobody says which."""
KINDS = ("model", "algorithm", "reward")


def init(
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The model.", autocompletion=completer("model"))] = None,
    algorithm: Annotated[
        str | None, typer.Option(metavar="NAME", help="The algorithm.", autocompletion=completer("algorithm"))
    ] = None,
    reward: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A reward. May repeat.", autocompletion=completer("reward"))
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The model's folder or hub id; the usual when left out."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=typed_path, help="Your prompts; some to begin with when left out.")
    ] = None,
    memory: Memory = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=typed_path, help="The config; MODEL-ALGORITHM.yaml when left out.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Write a first config with comments, fitted to the GPU that is here; without a choice, list what there is."""
    from flowfactory.discovery.discover import discover

    catalogue = discover(plugin or [])
    rewards = reward or []
    if model is None and algorithm is None and not rewards:
        _list(catalogue)
        if not _is_talked_to():
            say("choose with flowfactory init --model NAME --algorithm NAME --reward NAME")
            return
        model, algorithm, rewards = _ask(catalogue)
    _write(catalogue, model, algorithm, rewards, path, prompts, memory, out, plugin or [])


def _is_talked_to() -> bool:
    """Whether somebody sits at a terminal who can answer."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _list(catalogue: Catalogue) -> None:
    from flowfactory.discovery.descriptions import describe

    for kind in KINDS:
        named = catalogue.components[kind]
        say(f"{kind}s:")
        column = max(map(len, named), default=0)
        for name, component in sorted(named.items()):
            say(cut(f"  {name:<{column}}  {describe(component)}".rstrip(), terminal_width()))


def _ask(catalogue: Catalogue) -> tuple[str, str, list[str]]:
    """What somebody answers; an empty answer takes what stands in brackets."""
    from flowfactory.runs.starter.choice import choose

    usual = choose(catalogue, None, None, ())
    model = _answer(catalogue, "model", usual.model[0])
    rest = choose(catalogue, model, None, ())
    algorithm = _answer(catalogue, "algorithm", rest.algorithm[0])
    return model, algorithm, [_answer(catalogue, "reward", rest.rewards[0][0])]


def _answer(catalogue: Catalogue, kind: str, usual: str) -> str:
    while True:
        name: str = typer.prompt(kind, default=usual)
        try:
            catalogue.find(kind, name.strip())
        except UserError as error:
            warn(str(error))
        else:
            return name.strip()


def _write(
    catalogue: Catalogue,
    model: str | None,
    algorithm: str | None,
    rewards: list[str],
    path: str | None,
    prompts: Path | None,
    memory: int | None,
    out: Path | None,
    plugins: list[Path],
) -> None:
    from flowfactory.config.editor_schema import editor_schema
    from flowfactory.runs.check.card import card_memory
    from flowfactory.runs.starter.choice import choose
    from flowfactory.runs.starter.starter import SCHEMA, Wish, make_starter

    choice = choose(catalogue, model, algorithm, rewards)
    file = out or Path(f"{choice.model[0]}-{choice.algorithm[0]}.yaml".replace(":", "-"))
    _require_new([file])
    if prompts is not None and not prompts.exists():
        raise UserError(f"--prompts: no file {prompts}")
    here = card_memory() if memory is None else None
    card = memory or here or ASSUMED
    own = None if prompts is None else _whole(prompts)
    wish = Wish(file.name, _as_typed(path), own, card, assumed=memory is None and here is None, plugins=plugins)
    starter = make_starter(catalogue, choice, wish, warn)
    written = {file.parent / name: text for name, text in starter.prompts.items()}
    _require_new(list(written))
    schema = json.dumps(editor_schema(catalogue), indent=1) + "\n"
    place, text = _place_schema(file.parent / SCHEMA, schema), starter.text
    if place.name != SCHEMA:
        text = text.replace(f"$schema={SCHEMA}", f"$schema={place.name}", 1)
    for new, content in {**written, **({} if place.exists() else {place: schema}), file: text}.items():
        _create(new, content)
        say(f"wrote {new}")
    say(f"memory: {starter.fitted.sentence}")
    say(f"next: flowfactory check {shlex.quote(str(file))}")


def _as_typed(path: str | None) -> str | None:
    """A folder as the file, wherever it is, can name it."""
    if path is None:
        return None
    folder = Path(os.path.expanduser(path))
    return str(_whole(folder)) if folder.is_dir() else path


def _whole(path: Path) -> Path:
    """``path`` from the root on, and without ``..``; links in it stay where it has none."""
    return path.resolve() if ".." in path.parts else path.absolute()


def _require_new(files: list[Path]) -> None:
    for file in files:
        if file.exists() or file.is_symlink():
            raise UserError(f"{file} is there already, and nothing is overwritten; choose another name with --out")


def _place_schema(file: Path, text: str) -> Path:
    """``file``, or where another schema is there already a name of its own."""
    import hashlib

    try:
        same = file.read_text(encoding="utf-8") == text
    except FileNotFoundError:
        return file
    except (OSError, UnicodeDecodeError):
        same = False
    return file if same else file.with_name(f"flowfactory-{hashlib.sha256(text.encode()).hexdigest()[:8]}.schema.json")


def _create(file: Path, text: str) -> None:
    """UserError: it cannot be written, or somebody else made it meanwhile."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError as error:
        raise UserError(f"{file} is there already, and nothing is overwritten; choose another name with --out") from error
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; choose another place with --out") from error
