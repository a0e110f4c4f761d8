"""The page for who watches a run tells every hook and every field, and its tracker does what it says."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flowfactory import EvaluatedSample, RunInfo
from flowfactory.cli.main import app
from flowfactory.hooks.manager import MARKED_TOGETHER
from flowfactory.hooks.specs import RunSpecs

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "observers.md").read_text(encoding="utf-8")
WATCHING = next(group for group in MARKED_TOGETHER if "run_started" in group)


@pytest.mark.parametrize("hook", WATCHING)
def test_every_hook_is_told_with_what_it_is_given(hook: str) -> None:
    _, *given = inspect.signature(getattr(RunSpecs, hook)).parameters
    assert f"| `{hook}({', '.join(given)})` |" in PAGE


def test_everything_that_is_known_of_a_run_and_of_a_sample_is_told() -> None:
    for known, name in ((RunInfo, "run"), (EvaluatedSample, "sample")):
        for field in fields(known):
            assert f"| `{name}.{field.name}" in PAGE


def test_the_tracker_writes_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ("pixels.py", "brightness.py", "printer.py", "printer.yaml")
    for page in DOCS.rglob("*.md"):
        for name, text in re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
            if name in wanted:
                (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo blue rings\n")
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["run", "printer.yaml", "--out", "run", "--quiet"])
    assert result.exception is None
    lines = (tmp_path / "run" / "printed.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert "'reward/brightness/mean': " in lines[2]
