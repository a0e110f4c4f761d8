"""The reference covers every public name and every hook, and its examples print what they say."""

from __future__ import annotations

import importlib
import inspect
import io
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
import pytest
from tests.shared.public_doors import DOORS

from flowfactory.discovery.specs import PROJECT, DiscoverySpecs
from flowfactory.hooks.specs import RunSpecs

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = DOCS / "reference"
EXAMPLES = sorted(REFERENCE.glob("examples/*/*.py"))
SPECS = (DiscoverySpecs, RunSpecs)
HOOKS = sorted(name for specs in SPECS for name, hook in vars(specs).items() if hasattr(hook, f"{PROJECT}_spec"))
MATHS = ("flowfactory.flow", "flowfactory.rl", "flowfactory.policy")
TYPES = (
    *("Canvas", "Conditions", "Dynamics", "Evaluation", "Experience", "Loss", "NoiseKey", "Policy", "Prompt", "RunInfo"),
    *("Runtime", "Samples", "SamplingPlan", "Step", "Trainable", "Trajectory"),
)


@pytest.fixture(scope="module")
def names() -> Iterator[ModuleType]:
    """``docs/public_names.py``, which makes the entries."""
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("public_names")
    finally:
        sys.path.remove(str(DOCS))


def printed(file: Path) -> tuple[list[str], dict[str, Any]]:
    """What an example prints, and what it defines."""
    space: dict[str, Any] = {"__name__": file.stem}
    with redirect_stdout(io.StringIO()) as output:
        exec(compile(file.read_text(encoding="utf-8"), file, "exec"), space)
    return output.getvalue().splitlines(), space


def test_every_hook_has_an_entry_with_a_docstring_and_an_example(names: ModuleType) -> None:
    documented = {entry.name: entry for entry in names.entries(names.HOOKS)}
    assert sorted(documented) == HOOKS
    for name, entry in documented.items():
        assert len(entry.text) > 40, f"{name} has no docstring"
        assert entry.example.exists(), f"{name} has no example"


def test_every_public_name_has_a_docstring_of_its_own(names: ModuleType) -> None:
    bare = [entry.path for door in names.DOORS for entry in names.entries(door) if not entry.text]
    assert bare == []


def test_every_public_door_has_a_page(names: ModuleType) -> None:
    assert set(names.DOORS) == set(DOORS)
    pages = "".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    for door in (*names.DOORS, names.HOOKS):
        assert f"```{{reference}} {door}\n" in pages, f"no page has {door}"


def test_the_maths_and_the_main_types_have_examples(names: ModuleType) -> None:
    wanted = [entry for entry in names.entries("flowfactory") if entry.name in TYPES]
    assert len(wanted) == len(TYPES)
    for door in MATHS:
        module = importlib.import_module(door)
        things = [entry for entry in names.entries(door) if not names.is_elsewhere(entry)]
        wanted += [entry for entry in things if inspect.isroutine(made := getattr(module, entry.name)) or inspect.isclass(made)]
    assert [entry.path for entry in wanted if not entry.example.exists()] == []


def test_every_example_belongs_to_an_entry(names: ModuleType) -> None:
    entries = [entry for door in (*names.DOORS, names.HOOKS) for entry in names.entries(door)]
    shown = {entry.example for entry in entries if not names.is_elsewhere(entry)}
    assert [file for file in EXAMPLES if file not in shown] == []


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_an_example_prints_what_it_says(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    said = [line.removeprefix("# > ") for line in lines if line.startswith("# > ")]
    output, space = printed(file)
    assert said
    assert output == said
    assert sum(1 for line in lines if line and not line.startswith(("# > ", "import ", "from "))) <= 8
    if file.parent.name == "hooks":
        assert file.stem in answered(space)


def answered(space: dict[str, Any]) -> set[str]:
    """The hooks that an example answers, once pluggy has taken them as it takes a component's."""
    manager = pluggy.PluginManager(PROJECT)
    for specs in SPECS:
        manager.add_hookspecs(specs)
    module = ModuleType("example")
    vars(module).update(space)
    for plugin in (
        module,
        *(made for made in space.values() if inspect.isclass(made) and made.__module__ == space["__name__"]),
    ):
        manager.register(plugin() if inspect.isclass(plugin) else plugin)
    manager.check_pending()
    return {hook.name for plugin in manager.get_plugins() for hook in manager.get_hookcallers(plugin) or ()}


@pytest.mark.parametrize("door", ["hooks", *MATHS])
def test_a_page_shows_signature_docstring_and_example(names: ModuleType, door: str) -> None:
    page = "\n".join(names.page(door))
    for entry in names.entries(door):
        if names.is_elsewhere(entry):
            continue
        assert f"}} {entry.path}" in page
        if entry.example.exists():
            assert entry.example.read_text(encoding="utf-8").strip() in page


def test_an_entry_reads_well(names: ModuleType) -> None:
    page = "\n".join(names.page("flowfactory.rl"))
    assert "{py:function} flowfactory.rl.center(rewards: Tensor, groups: Tensor) -> Tensor" in page
    assert "A group whose rewards are all equal, as {py:obj}`group_std <flowfactory.rl.group_std>` sees it, gets zeros." in page
    assert "[arXiv:2402.03300](https://arxiv.org/abs/2402.03300)" in page
    types = "\n".join(names.page("flowfactory"))
    assert "steps: tuple[~flowfactory.Step, ...]" in types
    assert "- `blocks`: names of the repeated module classes" in types
    assert "{py:method} replay()" in types
