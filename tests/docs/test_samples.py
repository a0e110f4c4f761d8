"""What the pages show of the command line is what it prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flowfactory.cli.main import app

DOCS = Path(__file__).parents[2] / "docs"
RUNS = {
    "first": (2, 2, "finished", {0: 0.1708, 2: 0.2083}),
    "quickstart": (60, 60, "finished", {0: 0.1708, 60: 0.7083}),
    "seed2": (12, 60, "stopped", {0: 0.1875}),
}
"""By name: iterations made and planned, how it ended, and the held-out score after some."""

HEAD = "run         state     iterations  best score                        algorithm  model"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def make_run(name: str) -> None:
    done, planned, how, scores = RUNS[name]
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"model: {{name: tiny}}\nalgorithm: {{name: nft}}\nrewards: {{strict: scene}}\ntraining: {{iterations: {planned}}}\n"
    )
    (folder / "run.json").write_text(json.dumps({"end": {"how": how}}))
    records = [{"iteration": i, **({"eval/strict/mean": scores[i]} if i in scores else {})} for i in range(done + 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


def printed(*command: str) -> list[str]:
    found = CliRunner().invoke(app, list(command))
    assert found.exit_code == 0, found.output
    return found.output.strip().splitlines()


def sample_of(page: str, first: str) -> list[str]:
    """The lines of the block of a page that has ``first``, from there on, without the command itself."""
    blocks = re.findall(r"^```\w+\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = next(block.splitlines() for block in blocks if f"{first}\n" in block)
    return lines[lines.index(first) + first.startswith("$ ") :]


@pytest.mark.parametrize(
    ("names", "page", "first"), [(["first"], "cli.md", "$ flowfactory runs"), (list(RUNS), "report.md", HEAD)]
)
def test_the_list_of_runs(names: list[str], page: str, first: str) -> None:
    for name in names:
        make_run(name)
    assert printed("runs") == sample_of(page, first)


def test_the_doctor_of_a_short_run() -> None:
    make_run("first")
    assert printed("doctor", "runs/first") == sample_of("cli.md", "$ flowfactory doctor runs/first")


@pytest.mark.parametrize("command", ["plugins list --kind tracker", "plugins show flow-sde"])
def test_what_is_installed(command: str) -> None:
    shown, told = (
        [re.sub(r"\d+\.\d+\.\d+", "X.Y.Z", line) for line in lines]
        for lines in (sample_of("cli.md", f"$ flowfactory {command}"), printed(*command.split()))
    )
    if "…" not in shown:
        assert shown == told
    lines = iter(told)
    assert all(line in lines for line in shown if line != "…"), f"{command} prints {told}"
