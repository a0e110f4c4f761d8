"""`flowfactory licences`: every checkpoint that our packages name by themselves is there, with a licence."""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flowfactory.cli.main import app
from flowfactory.config.component_slots import config_class
from flowfactory.config.paths import CheckpointPath
from flowfactory.discovery.discover import discover

ROOT = Path(__file__).parents[2]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
NO_CHECKPOINT = re.compile(r"(application|image|video|ratio|kl_old)/.*")
"""Texts that look like hub ids: media types, and names of metrics."""


@pytest.fixture(scope="module")
def listed() -> dict[str, list[dict[str, str | None]]]:
    result = CliRunner().invoke(app, ["licences", "--json"])
    assert result.exception is None
    found: dict[str, list[dict[str, str | None]]] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def known(listed: dict[str, list[dict[str, str | None]]]) -> dict[tuple[str, str], set[str]]:
    """{(kind, component): names of checkpoints}."""
    found = defaultdict(set)
    for row in listed["checkpoints"]:
        found[str(row["kind"]), str(row["component"])].add(str(row["name"]))
    return found


def test_every_default_is_declared_beside_it(known: dict[tuple[str, str], set[str]]) -> None:
    """None is left to "see its page" by default: somebody has looked."""
    count = 0
    for component in discover().found:
        if component.kind == "example":
            continue
        options = config_class(component)
        declared = vars(options).get("checkpoint_licences", {})
        for field in options.model_fields.values():
            if CheckpointPath.__metadata__[0] in field.metadata and field.default and isinstance(field.default, str):
                count += 1
                named = field.default in declared if HUB_ID.fullmatch(field.default) else bool(declared)
                assert named, f"{component.kind} {component.name}: {field.default}"
        assert all(declared.values())
    assert count >= 15
    assert known["model", "tiny"] == {"pipeline, in the package flowfactory-tiny"}


def test_every_checkpoint_of_an_example_is_listed(known: dict[tuple[str, str], set[str]]) -> None:
    paths = 0
    for component in discover().found:
        if component.kind == "example":
            config = yaml.safe_load(Path(component.spec).read_text(encoding="utf-8"))
            for kind, options in [
                ("model", config["model"]),
                *(("reward", each) for each in config.get("rewards", {}).values()),
            ]:
                if isinstance(options, dict) and "path" in options:
                    paths += 1
                    assert options["path"] in known[kind, options["name"]], component.name
    assert paths >= 10


def test_every_hub_id_in_the_code_is_listed(listed: dict[str, list[dict[str, str | None]]]) -> None:
    """Also those that are no option's default, such as the tokenizer of a CLIP that a reward was made of."""
    names = {row["name"] for row in listed["checkpoints"]}
    found = set()
    for file in [*ROOT.glob("plugins/*/src/**/*.py"), *ROOT.glob("flowfactory-*/src/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and HUB_ID.fullmatch(node.value):
                found.add(node.value)
    assert {name for name in found if not NO_CHECKPOINT.fullmatch(name)} <= names
    assert "laion/CLIP-ViT-H-14-laion2B-s32B-b79K" in found


def test_every_package_and_checkpoint_has_a_licence(listed: dict[str, list[dict[str, str | None]]]) -> None:
    licences = {row["name"]: row["licence"] for row in listed["packages"]}
    assert {name: licence for name, licence in licences.items() if licence == "not stated"} == {}
    assert len([name for name in licences if str(name).startswith("flowfactory")]) == 20
    assert all(row["licence"] for row in listed["checkpoints"])
    assert all(row["page"] for row in listed["checkpoints"] if "see its page" in str(row["licence"]))


def test_the_list_for_people_says_the_same(listed: dict[str, list[dict[str, str | None]]]) -> None:
    result = CliRunner().invoke(app, ["licences"])
    lines = result.stdout.splitlines()
    assert len(lines) == len(listed["packages"]) + len(listed["checkpoints"]) + 3
    [line] = [line for line in lines if "yuvalkirstain/PickScore_v1" in line]
    assert line.split()[:3] == ["reward", "pickscore", "yuvalkirstain/PickScore_v1"]
    assert line.endswith("see its page  https://huggingface.co/yuvalkirstain/PickScore_v1")
