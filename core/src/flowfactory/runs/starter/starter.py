"""A starter config, whole: chosen, drafted, fitted to a card, and as text with comments."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowfactory.config.checking import check as check_config
from flowfactory.config.component_slots import config_class, schema_type
from flowfactory.config.example_options import bundled_example
from flowfactory.config.findings import WrongConfig
from flowfactory.config.loading import parse
from flowfactory.data.prompt_files import read_rows
from flowfactory.docs_address import page
from flowfactory.errors import UserError
from flowfactory.runs.starter.draft import drafts, lacking_options, lacking_records
from flowfactory.runs.starter.fitting import Fitted, fit
from flowfactory.runs.starter.prompts import starter_rows, write_rows
from flowfactory.runs.starter.rendering import render
from flowfactory.types import Say

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig
    from flowfactory.discovery.catalogue import Catalogue
    from flowfactory.runs.starter.choice import Choice

SCHEMA = "flowfactory.schema.json"


@dataclass(frozen=True)
class Starter:
    """The texts of a config, and by name those of the prompt files beside it, and how it was fitted."""

    text: str
    prompts: Mapping[str, str]
    fitted: Fitted


@dataclass(frozen=True)
class Wish:
    """What is to be written: the name of the config, the checkpoint, prompts of the user's own, and the card.

    ``assumed``: whether nobody said which card, and none is here.
    """

    name: str
    path: str | None
    prompts: Path | None
    card: int
    assumed: bool
    plugins: Sequence[Path] = ()


def make_starter(catalogue: Catalogue, choice: Choice, wish: Wish, say: Say) -> Starter:
    """The starter config. UserError: the components do not go together, or an option that must be given is not known."""
    records = choice.learns_from != "samples"
    if records and not wish.prompts:
        raise UserError(lacking_records(choice))
    if told := lacking_options(catalogue, choice):
        raise UserError(told)
    prompts = _prompt_files(catalogue, choice, Path(wish.name).stem) if records or not wish.prompts else {}
    if records:
        prompts = dict([*prompts.items()][1:])  # those that are held out
    with tempfile.TemporaryDirectory(prefix="flowfactory-") as temporary:
        folder = Path(temporary)
        for name, text in prompts.items():
            (folder / name).write_text(text, encoding="utf-8")
        check = partial(_validate, catalogue=catalogue, folder=folder, name=wish.name)
        raw, remarks = _completed(_first_valid(catalogue, choice, wish, list(prompts), check), folder, wish, check)
        model = config_class(choice.model[1])
        fitted = fit(raw, model, wish.card, check, say)
        check(fitted.raw)
    return Starter(_render(catalogue, choice, wish, fitted, remarks), prompts, fitted)


def _completed(
    raw: dict[str, Any], folder: Path, wish: Wish, check: Callable[[dict[str, Any]], RunConfig]
) -> tuple[dict[str, Any], list[str]]:
    """``raw`` with no more groups than prompts, and with guidance where the model has some; what is to be known of these."""
    sampling, remarks, config = {**raw["sampling"]}, [], check(raw)
    train = Path(raw["prompts"]["train"])
    count = sum(1 for _ in read_rows(folder / train))
    wanted, least = config.sampling.groups, config.training.updates
    if count < wanted and least < wanted:
        sampling["groups"] = max(count, least)
        more = f"set sampling.groups to up to {wanted}"
        if wish.prompts:
            remarks.append(f"Prompts: {train.name} has {count}, with a group each; with more of them, {more}.")
        else:
            remarks.append(f"Prompts: the {count} in {train.name} are placeholders; write many of your own there, and {more}.")
    if config.model.takes_negatives():
        sampling.setdefault("guidance", config.sampling.guidance)
        remarks.append(f"Guidance: set sampling.guidance to that which the model will be used with, see {page('guidance')}.")
    return {**raw, "sampling": sampling}, remarks


def _prompt_files(catalogue: Catalogue, choice: Choice, stem: str) -> dict[str, str]:
    train, heldout = starter_rows(bundled_example(catalogue, choice.model[1]), [c for _, c in choice.rewards])
    found = {}
    for part, rows in (("prompts", train), ("heldout", heldout)):
        ending, text = write_rows(rows)
        found[f"{stem}-{part}{ending}"] = text
    return found


def _first_valid(
    catalogue: Catalogue, choice: Choice, wish: Wish, files: list[str], check: Callable[[dict[str, Any]], RunConfig]
) -> dict[str, Any]:
    """The first draft that nothing is wrong with. UserError: that of the first, where there is something with all."""
    wrong: UserError | None = None
    for raw in drafts(catalogue, choice, wish.path):
        if wish.plugins:
            raw["plugins"] = [str(file.resolve()) for file in wish.plugins]
        raw["prompts"] = dict(zip(("train", "heldout"), [str(wish.prompts), *files] if wish.prompts else files, strict=False))
        if "heldout" not in raw["prompts"]:
            del raw["evaluation"]
        try:
            check(raw)
        except UserError as error:
            wrong = wrong or error
        else:
            return raw
    assert wrong is not None
    raise wrong


def _validate(raw: dict[str, Any], catalogue: Catalogue, folder: Path, name: str) -> RunConfig:
    """The config of ``raw``, whose relative paths are in ``folder``. UserError: something is wrong with it."""
    try:
        return check_config(raw, catalogue, folder)
    except WrongConfig as error:
        raise UserError(*error.describe(name)) from error


def _render(catalogue: Catalogue, choice: Choice, wish: Wish, fitted: Fitted, remarks: Sequence[str]) -> str:
    """The text of the file; ``remarks`` stand at the end of its header."""
    names = {
        "model": [choice.model[0]],
        "algorithm": [choice.algorithm[0]],
        "reward": [name for name, _ in choice.rewards],
        "dynamics": list(catalogue.components["dynamics"]),
    }
    rewards = ", ".join(names["reward"])
    assumed = "; no GPU is here, and 24 GB is the default: another with --memory 48GB" if wish.assumed else ""
    judged = "judged" if choice.learns_from == "samples" else "evaluated"
    header = [
        f"yaml-language-server: $schema={SCHEMA}",
        f"{choice.algorithm[0]} on {choice.model[0]}, {judged} by {rewards}: written by flowfactory init.",
        f"Check it with flowfactory check {wish.name}, and train with flowfactory run {wish.name}",
        f"Every key: {page('config')}. What is commented out is the default.",
        f"Memory: {fitted.sentence}{assumed}.",
        *remarks,
    ]
    text = render(fitted.raw, schema_type(catalogue, names), header)
    parse(text, wish.name)  # as whoever reads it will
    return text
