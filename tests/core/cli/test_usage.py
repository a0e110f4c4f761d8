"""Commands that are typed wrong: one line, and exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Invoke = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("rnu x", "flowfactory has no command 'rnu'; did you mean 'run'?"),
        ("plugins lst", "flowfactory plugins has no command 'lst'; did you mean 'list'?"),
        ("run", "flowfactory run needs CONFIG; see flowfactory run --help"),
        ("export only", "flowfactory export needs OUT; see flowfactory export --help"),
        ("run x --stes a=1", "flowfactory run has no option --stes; did you mean '--set'?"),
        ("run x --res", "flowfactory run has no option --res; did you mean '--resume'?"),
        ("run x -s a=1", "flowfactory run has no option -s; did you mean '--set'?"),
        ("run x seed=3", "flowfactory run takes no 'seed=3'; write --set seed=3"),
        ("run x a=1 b.c=2", "flowfactory run takes no 'a=1 b.c=2'; write --set a=1 --set b.c=2"),
        ("run x y", "flowfactory run takes no 'y'; see flowfactory run --help"),
        ("run x --set", "--set needs a value after it"),
        ("run x --nproc two", "--nproc: give a whole number"),
        ("estimate x --nproc 0", "--nproc: give at least 1"),
        ("estimate x --card big", "--card: give a number"),
        ("estimate x --card 0", "--card 0: give the GiB of a GPU's memory, above 0"),
        ("estimate x --card -3", "--card -3: give the GiB of a GPU's memory, above 0"),
        ("estimate x --card inf", "--card inf: give the GiB of a GPU's memory, above 0"),
        ("estimate x --card nan", "--card nan: give the GiB of a GPU's memory, above 0"),
        ("serve x --port 99999", "--port: give at most 65535"),
        ("run x --plugin nofile.py", "--plugin: no file nofile.py"),
        ("estimate x --plugin nofile.py", "--plugin: no file nofile.py"),
        ("run nofile.yaml", "no file nofile.yaml, and no example of that name; none is installed"),
        ("estimate nofile.yaml", "no file nofile.yaml, and no example of that name; none is installed"),
        ("serve nofile.yaml", "no file nofile.yaml"),
        ("sample nowhere cat", "nowhere is no run directory: it has no config.yaml"),
        ("eval nowhere", "nowhere is no run directory: it has no config.yaml"),
        ("report nowhere", "nowhere is no run directory: it has no config.yaml"),
        ("export nowhere out", "nowhere is no run directory: it has no config.yaml"),
        ("plugins show sde", "no component called 'sde'; did you mean 'flow-sde'?"),
        ("plugins show flow-sdee", "no component called 'flow-sdee'; did you mean 'flow-sde'?"),
    ],
)
def test_a_command_typed_wrong_is_one_line(invoke: Invoke, typed: str, sentence: str) -> None:
    assert invoke(*typed.split()) == (2, "", f"error: {sentence}\n")


def test_every_finding_is_a_line(invoke: Invoke, config_file: Callable[..., Path]) -> None:
    code, out, err = invoke("run", config_file({"sampling": {"stepps": 1}, "seed": -1}), "--set", "device=gpu", "--dry-run")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: config.yaml: sampling.stepps: unknown key; did you mean 'steps'?",
        "error: --set device: got 'gpu'; give auto, cpu, cuda or cuda:1; did you mean cuda?",
        "error: config.yaml: seed: got -1; give a whole number of at least 0 and below 9223372036854775808",
    ]


def test_a_key_that_does_nothing_is_a_warning(invoke: Invoke, config_file: Callable[..., Path]) -> None:
    code, _, err = invoke("run", config_file({"prompts": {"heldout": None}, "evaluation": {"every": 2}}), "--dry-run")
    assert (code, err) == (
        0,
        "warning: evaluation.every does nothing without held-out prompts; name their file in prompts.heldout\n",
    )


def test_help_and_commands_without_arguments_show_the_help(invoke: Invoke) -> None:
    assert invoke("run", "--help")[0] == 0
    for arguments in ([], ["plugins"]):
        code, out, err = invoke(*arguments)
        assert code == 2
        assert "Usage: flowfactory" in out + err


def test_what_a_component_takes_is_shown(invoke: Invoke, toy: Path) -> None:
    code, out, err = invoke("plugins", "show", "bright", "--plugin", toy)
    assert (code, err) == (0, "")
    assert "  tells: pid or null; default null" in out
    assert "  seconds: a number of at least 0; default 0; how long it takes its time" in out
    assert "  workers: a whole number from 0 to 1000; default 0; processes" in out
