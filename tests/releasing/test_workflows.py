"""The workflows run sessions of noxfile.py and little else, with actions that cannot change under them."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
INSTALLED = ["pip", "install", "-c", "constraints.txt", "nox"]
each = pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)


def read(file: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


def steps(file: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(job, step), of all jobs."""
    for job in read(file)["jobs"].values():
        for step in job["steps"]:
            yield job, step


def commands(file: Path) -> list[list[str]]:
    """The words of every command, with each choice of its job's matrix."""
    found = []
    for job, step in steps(file):
        matrix = job.get("strategy", {}).get("matrix", {})
        for chosen in product(*matrix.values()):
            values = dict(zip(matrix, chosen, strict=True))
            text = re.sub(r"\$\{\{ *matrix\.(\w+) *\}\}", lambda name: str(values[name[1]]), step.get("run", ""))  # noqa: B023 used at once
            found += [shlex.split(line) for line in text.splitlines()]
    return found


def sessions() -> set[str]:
    """What ``nox --list`` names, read from the file: nox itself need not be installed."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    assigned = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}

    def choices(values: ast.expr) -> list[str]:
        """Of a list by its name, or ``list(NAME)`` of the keys of a mapping; the folder of a package by its own name."""
        listed = assigned[ast.unparse(values.args[0] if isinstance(values, ast.Call) else values)]
        assert isinstance(listed, ast.Dict | ast.List)
        found = listed.keys if isinstance(listed, ast.Dict) else listed.elts
        return [Path(ast.literal_eval(each)).name for each in found if each]

    names = set()
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        marks = [ast.unparse(mark) for mark in node.decorator_list]
        called = [mark for mark in node.decorator_list if isinstance(mark, ast.Call)]
        pythons = [word.value for mark in called for word in mark.keywords if word.arg == "python"]
        chosen = [mark.args[1] for mark in called if ast.unparse(mark.func) == "nox.parametrize"]
        if chosen:
            names |= {f"{node.name}({choice})" for choice in choices(chosen[0])}
        elif any(isinstance(python, ast.List) for python in pythons):
            names |= {f"{node.name}-{version}" for python in pythons for version in ast.literal_eval(python)}
        elif any(mark.startswith("nox.session") for mark in marks):
            names.add(node.name)
    return names


def named(words: list[str]) -> list[str]:
    """The sessions that a command of nox names."""
    assert words[:2] == ["nox", "-s"]
    return [word for word in words[2 : words.index("--") if "--" in words else None] if not word.startswith("--")]


@each
def test_every_command_is_a_session_that_there_is(file: Path) -> None:
    ran = [words for words in commands(file) if words != INSTALLED]
    assert ran
    for words in ran:
        assert named(words) != []
        assert set(named(words)) <= sessions()


def test_every_session_that_judges_is_run_somewhere() -> None:
    """Those left out measure, take an hour, or are run by another."""
    ran = {session for file in WORKFLOWS for words in commands(file) if words != INSTALLED for session in named(words)}
    assert sessions() - ran == {"tests", "build", "soak", "bench", "quickstart"}


def test_a_session_that_there_is_not_would_be_found() -> None:
    assert {"lint", "lowest", "upper", "pythons-3.14", "isolated(core)", "isolated(qwen-image)"} <= sessions()
    assert not {"install", "isolated", "pythons", "pythons-3.10", "flake8"} & sessions()


@each
def test_every_action_is_pinned_to_a_commit(file: Path) -> None:
    used = re.findall(r"uses: *(.*)", file.read_text(encoding="utf-8"))
    assert len(used) == sum("uses" in step for _, step in steps(file))
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_an_action_is_pinned_to_one_commit_everywhere() -> None:
    used = {step["uses"] for file in WORKFLOWS for _, step in steps(file) if "uses" in step}
    assert len({action.split("@")[0] for action in used}) == len(used)


@each
def test_nothing_is_given_but_what_is_needed(file: Path) -> None:
    text, workflow = file.read_text(encoding="utf-8"), read(file)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in text
    assert "pull_request_target" not in text
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"] == {"persist-credentials": False}


def test_a_release_is_published_without_a_token_and_after_all_checks() -> None:
    workflow = read(ROOT / ".github/workflows/release.yml")
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads "on" as true
    publish = workflow["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    assert [step["uses"].split("@")[0] for step in publish["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]
    assert "with" not in publish["steps"][1]
    assert ["nox", "-s", "release", "--", "--tag", "$GITHUB_REF_NAME"] in [
        shlex.split(step["run"]) for step in workflow["jobs"]["build"]["steps"] if "run" in step
    ]


def test_every_python_that_the_packages_are_for_is_tested() -> None:
    project = tomllib.loads((ROOT / "core/pyproject.toml").read_text())["project"]
    matrix = read(ROOT / ".github/workflows/tests.yml")["jobs"]["pythons"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={matrix[0]}"
    assert {f"pythons-{version}" for version in matrix} == {name for name in sessions() if name.startswith("pythons-")}
    assert matrix == ["3.11", "3.12", "3.13", "3.14"]


def test_every_package_is_tested_alone() -> None:
    matrix = read(ROOT / ".github/workflows/tests.yml")["jobs"]["isolated"]["strategy"]["matrix"]["package"]
    assert {f"isolated({package})" for package in matrix} == {name for name in sessions() if name.startswith("isolated")}


def test_who_reports_a_reward_that_does_not_learn_is_asked_for_the_doctor() -> None:
    form = read(ROOT / ".github/ISSUE_TEMPLATE/does_not_learn.yml")
    first = next(part for part in form["body"] if part["type"] == "textarea")
    assert "flowfactory doctor" in first["attributes"]["description"]
    assert first["validations"] == {"required": True}


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.stem)
def test_a_form_names_files_and_commands_that_there_are(file: Path) -> None:
    from flowfactory.cli.main import app

    text = file.read_text(encoding="utf-8")
    assert all((ROOT / page).is_file() for page in re.findall(r"docs/\w+\.md|\b[A-Z]+\.md", text))
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"`flowfactory (\w+)", text)) <= known
