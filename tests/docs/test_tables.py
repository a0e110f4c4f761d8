"""The tables of attributes on the pages for authors have the names that there are, and all of them."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from flowfactory import AlgorithmConfig, Canvas, Dynamics, Experience, Loss, Policy, Samples, SamplingPlan, Trainable
from flowfactory.flow import NoisedBatch

DOCS = Path(__file__).parents[2] / "docs"
TABLES: dict[tuple[str, str], type] = {
    ("algorithm.md", "| attribute of a plan |"): SamplingPlan,
    ("algorithm.md", "| of the experience |"): Experience,
    ("algorithm.md", "## Loss\n"): Loss,
    ("algorithm.md", "## Policy\n"): Policy,
    ("algorithm.md", "## The options\n"): AlgorithmConfig,
    ("algorithm.md", "Each piece\nhas\n"): NoisedBatch,
    ("model.md", "## Trainable\n"): Trainable,
    ("plugins.md", "## Dynamics\n"): Dynamics,
    ("reward.md", "## What a reward sees\n"): Samples,
}
"""What the first table is about that has its head in a text of a page, or follows it."""


def first_column(page: str, start: str) -> list[str]:
    """What stands in backticks in the first column of the table, without its call or value and without ``policy.``."""
    text = (DOCS / page).read_text(encoding="utf-8")
    assert text.count(start) == 1, f"{page} has no {start!r}, or several"
    rows = re.search(r"^\| *-+.*\n((?:\|.*\n)+)", text[text.index(start) :].replace("|---", "| ---"), re.MULTILINE)
    assert rows is not None
    cells = [row.split(" | ")[0] for row in rows.group(1).splitlines()]
    return [name.removeprefix("policy.") for cell in cells for name in re.findall(r"`([\w.]+)[^`]*`", cell)]


def members(kind: type) -> set[str]:
    """Fields and public attributes."""
    return {name for name in (*dir(kind), *get_type_hints(kind)) if not name.startswith("_")}


@pytest.mark.parametrize(("page", "start"), TABLES)
def test_every_name_in_a_table_is_one(page: str, start: str) -> None:
    kind = TABLES[page, start]
    optional = {"make_solver"} if kind is Dynamics else set()
    assert sorted(set(first_column(page, start)) - members(kind) - optional) == []


@pytest.mark.parametrize(("page", "start"), [key for key, kind in TABLES.items() if is_dataclass(kind) or kind is Dynamics])
def test_every_field_is_in_its_table(page: str, start: str) -> None:
    kind: Any = TABLES[page, start]
    known = {field.name for field in fields(kind)} if is_dataclass(kind) else members(kind)
    assert sorted(known - set(first_column(page, start))) == []


def test_a_canvas_has_what_the_table_of_a_plan_says_of_it() -> None:
    lines = (DOCS / "algorithm.md").read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith("| `canvas`"))
    assert set(re.findall(r"`(\w+)`", row)) == {"canvas", *Canvas._fields}
