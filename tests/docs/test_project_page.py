"""The page of a whole project, run from its first stage to the picture that diffusers draws of the last."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pages import write_files
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from flowfactory.cli.main import app

SMALL = ["training.iterations=2", "sampling.groups=4", "evaluation.at_start=false"]


def flowfactory(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.output


def test_each_stage_goes_on_from_the_one_before_and_diffusers_draws_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path)
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    settings = [part for setting in SMALL for part in ("--set", setting)]
    said = {}
    for stage in ("sft", "reward", "student"):
        said[stage] = flowfactory("run", f"stage_{stage}.yaml", *settings)
        assert "iteration 2/2" in said[stage]
    assert "records are learned from, and nothing is drawn" in said["sft"]
    assert "training starts from adapters of rank 16" in said["reward"]
    assert "are added to the frozen weights" in said["student"]
    flowfactory("export", "runs/student", "student")
    exported = load_file(tmp_path / "student" / "pytorch_lora_weights.safetensors")
    assert {len(factor) for name, factor in exported.items() if ".lora_A." in name} == {32}, "both stages' ranks"
    subprocess.run([sys.executable, "draw_student.py"], cwd=tmp_path, check=True)
    with Image.open("circle.png") as picture:
        assert picture.size == (32, 32)
