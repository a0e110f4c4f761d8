"""Every help: short, with examples that can be typed, and where more is told."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flowfactory.cli.completion import complete_component, complete_config, complete_run, completer
from flowfactory.cli.examples import EXAMPLES
from flowfactory.cli.main import app

Invoke = Callable[..., tuple[int, str, str]]


def commands(node: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The words of each command, groups among them, and the command."""
    node = node or typer.main.get_command(app)
    yield words, node
    for name, inner in getattr(node, "commands", {}).items():
        yield from commands(inner, (*words, name))


COMMANDS = dict(commands())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_help_has_two_examples_and_says_where_more_is_told(words: tuple[str, ...], option: str, invoke: Invoke) -> None:
    code, out, err = invoke(*words, option)
    assert (code, err) == (0, "")
    shown = [line.strip() for line in out.splitlines() if line.strip().startswith("flowfactory ")]
    assert len(set(shown)) >= 2, f"add two lines for {' '.join(words)!r} to EXAMPLES in cli/examples.py"
    assert "More: docs/cli.md in the repository" in out
    assert (Path(__file__).parents[3] / "docs" / "cli.md").is_file()


def test_examples_are_of_commands_that_there_are() -> None:
    assert {tuple(words.split()) for words in EXAMPLES} == set(COMMANDS)


@pytest.mark.parametrize("line", sorted({line for lines in EXAMPLES.values() for line in lines}))
def test_an_example_can_be_typed(line: str) -> None:
    typed = shlex.split(line)[1:]
    words = max((words for words in COMMANDS if tuple(typed[: len(words)]) == words), key=len)
    command, rest = COMMANDS[words], typed[len(words) :]
    assert words
    taken = {option: parameter for parameter in command.params for option in parameter.opts}
    while rest:
        part = rest.pop(0)
        if part.startswith("--"):
            assert part in taken, line
            if not taken[part].is_flag:
                assert rest.pop(0)
        else:
            assert any(parameter.param_type_name == "argument" for parameter in command.params), line


def test_the_version_is_told_in_one_line(invoke: Invoke) -> None:
    code, out, err = invoke("--version")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"flowfactory \d+\.\S+, torch \d+\.\S+, diffusers \S+( installed)?, Python 3\.\d+\.\S+\n", out)


def test_configs_and_folders_are_offered(tmp_path: Path) -> None:
    for name in ("one.yaml", "two.yml", "other.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "within").mkdir()
    (tmp_path / "within" / "three.yaml").write_text("")
    assert complete_config("") == ["one.yaml", "two.yml", "within/"]
    assert complete_config("o") == ["one.yaml"]
    assert complete_config("within/") == ["within/three.yaml"]
    assert complete_config("nowhere/x") == []


def test_runs_are_offered_before_other_folders(tmp_path: Path) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "config.yaml").write_text("")
    (tmp_path / "src").mkdir()
    assert complete_run("") == ["runs/first", "runs/", "src/"]
    assert complete_run("s") == ["src/"]


def test_components_are_offered_and_a_wrong_environment_offers_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete_component("flow") == ["flow-sde"]
    assert completer("dynamics")("d") == ["dance-sde", "dpm-solver"]
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "no-such-plugin")
    assert complete_component("") == []
