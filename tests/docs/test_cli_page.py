"""The page of the command line is about every command that there is, and about no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import docs_modules
import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "cli.md").read_text(encoding="utf-8")


COMMANDS: Any = docs_modules.load("commands")


def test_the_page_has_each_command_once() -> None:
    shown = re.findall(r"^```\{command\} (.+)$", PAGE, re.MULTILINE)
    assert sorted(shown) == sorted(COMMANDS.commands()), "docs/cli.md has a section with ```{command} NAME for each"
    assert {f"### {words}" for words in shown} <= set(PAGE.splitlines())


@pytest.mark.parametrize("words", list(COMMANDS.commands()))
def test_each_has_an_example_and_a_row_for_everything_it_takes(words: str) -> None:
    section = PAGE.partition(f"### {words}\n")[2].partition("\n### ")[0]
    assert re.search(
        rf"^\$ flowfactory {words.removesuffix(' show') if words == 'cache show' else words}\b", section, re.MULTILINE
    )
    told = "\n".join(COMMANDS.table(words))
    for parameter in COMMANDS.find(words).params:
        name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar
        assert name in told, name
        assert parameter.help, f"{words}: say what {name} is for"


def test_options_that_the_page_names_are_options() -> None:
    known = {option for words in COMMANDS.commands() for parameter in COMMANDS.find(words).params for option in parameter.opts}
    known |= {"--help", "--version", "--install-completion", "--show-completion"}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= known
