"""``flowfactory plugins check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flowfactory.cli.options import Plugins, Sets, typed_path
from flowfactory.cli.output import say
from flowfactory.errors import UserError


def check(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME|FILE]", help="A component, or a one-file plugin; all that is installed without."),
    ] = None,
    plugin: Plugins = None,
    sets: Sets = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=typed_path, help="Prompts that it is tried on, of a .txt or .jsonl file."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW[xFRAMES]", help="What a model draws; the smallest it takes when left out.")
    ] = None,
) -> int:
    """Build components and try them against the contract of their kind; exit code 2 if anything is wrong."""
    from flowfactory.discovery.discover import discover
    from flowfactory.discovery.written_for import undeclared

    files = list(plugin or [])
    is_file = name is not None and (name.endswith(".py") or "/" in name)
    if name is not None and is_file:
        files.append(typed_path(name))
    catalogue = discover(files)
    chosen = _choose(catalogue, None if is_file else name, files[-1:] if is_file else [])
    if sets:  # which no example takes, and many a model has an example of its name
        chosen = [component for component in chosen if component.kind != "example"] or chosen
    options = _read_options(sets or [], len(chosen))
    from flowfactory.testing.component_check import Question, check_component

    wrong = 0
    if name is None:
        wrong += sum(_tell(f"plugin {remark.plugin}", [remark.sentence]) for remark in catalogue.broken)
    for origin, sentence in undeclared({component.distribution for component in chosen}, files).items():
        wrong += _tell(origin, [sentence])
    for component in chosen:
        asked = Question(component, catalogue, files, options, prompts, _read_size(size), named=name is not None)
        verdict = check_component(asked)
        place = f"{component.kind} {component.name}"
        if verdict.wrong:
            wrong += _tell(place, verdict.wrong)
        else:
            say(f"{place}: not checked, {verdict.left_out}" if verdict.left_out else f"{place}: in order")
    return 2 if wrong else 0


def _choose(catalogue: Any, name: str | None, files: list[Path]) -> list[Any]:
    """The components to check. UserError: there is none of this name; the nearest."""
    from flowfactory.suggestions import did_you_mean

    if name is not None:
        found = [component for component in catalogue.found if name in (component.name, component.full_name)]
        if not found:
            known = {component.name for component in catalogue.found}
            told = "".join(f"; plugin {one.plugin!r} could not be loaded: {one.sentence}" for one in catalogue.broken)
            raise UserError(f"no component called {name!r}{did_you_mean(name, known)}{told}")
        return found
    if files:
        mine = {files[0].name, str(files[0].resolve())}
        return [component for component in catalogue.found if component.distribution in mine]
    return list(catalogue.found)


def _read_options(sets: list[str], count: int) -> dict[str, Any]:
    """What ``--set`` says of one component. UserError: it is for several."""
    from flowfactory.config.overrides import apply_override

    if sets and count != 1:
        raise UserError(f"--set: {count} components are checked; name one of them, with --plugin FILE if a file brings it")
    options: dict[str, Any] = {}
    for assignment in sets:
        options = apply_override(options, assignment, "option=value")
    return options


def _read_size(size: str | None) -> tuple[int, ...] | None:
    import re

    if size is None:
        return None
    if not re.fullmatch("[1-9][0-9]{0,4}(x[1-9][0-9]{0,4}){1,2}", size):
        raise UserError(f"--size {size}: write height and width, such as 64x64, and frames of a video behind, such as 64x64x5")
    return tuple(map(int, size.split("x")))


def _tell(place: str, sentences: Any) -> int:
    for sentence in sentences:
        say(f"{place}: {sentence}")
    return 1
