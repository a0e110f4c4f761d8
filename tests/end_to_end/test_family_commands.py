"""Every model family draws, is evaluated and handed over through the command line, on tiny real checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import saved
import torch
from families import LORA, train_two_iterations
from family_cases import CASES, GRPO, NFT, prompts, sections
from typer.testing import CliRunner

from flowfactory.cli.main import app
from flowfactory_qwen_image.picture_processor import PictureProcessor3


@pytest.mark.parametrize("key", CASES)
def test_the_command_line_draws_scores_and_reports(key: str, checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    case = CASES[key]
    model = {"name": case.name, "path": str(checkpoints(key)), "train": LORA, **case.options}
    file = prompts(case, tmp_path)
    directory = train_two_iterations(model, GRPO, file, tmp_path, **sections(case))
    runner = CliRunner()

    drawn = runner.invoke(app, ["sample", str(directory.path), "--prompts", str(file), "--count", "2"])
    assert drawn.exit_code == 0, repr(drawn.exception)
    assert len(drawn.stdout.split()) == 4
    assert all(Path(line).is_file() for line in drawn.stdout.split())

    scored = runner.invoke(app, ["eval", str(directory.path)])
    assert scored.exit_code == 0, repr(scored.exception)
    assert json.loads(scored.stdout)["eval/light/mean"] == pytest.approx(directory.records()[-1]["eval/light/mean"], abs=1e-6)

    told = runner.invoke(app, ["report", str(directory.path)])
    assert told.exit_code == 0
    page = directory.report.read_text()
    wanted = r'<video[^>]* src="data:video/mp4;base64,' if len(case.size) == 3 else 'src="data:image/png;base64,'
    assert len(re.findall(wanted, page)) >= 4, "two prompts, before and after"


@pytest.mark.parametrize("key", CASES)
def test_a_full_fine_tune_is_exported_as_the_familys_pipeline(
    key: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    case = CASES[key]
    model = {"name": case.name, "path": str(checkpoints(key)), "train": "full", **case.options}
    directory = train_two_iterations(
        model, NFT, prompts(case, tmp_path), tmp_path, **sections(case), training={"iterations": 1}, evaluation={"pictures": 0}
    )
    done = CliRunner().invoke(app, ["export", str(directory.path), str(tmp_path / "out")])
    assert done.exit_code == 0, repr(done.exception)
    kind = json.loads((checkpoints(key) / "model_index.json").read_text())["_class_name"]
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    # diffusers itself opens this part only where torchvision is installed
    absent: dict[str, Any] = {"processor": None} if "processor" in index else {}
    if kind == "QwenImage21Pipeline":  # which cannot be made without it
        absent = {"processor": PictureProcessor3.from_pretrained(tmp_path / "out", subfolder="processor")}
    pipeline = getattr(diffusers, kind).from_pretrained(tmp_path / "out", **absent)
    trained = saved.weights(directory.checkpoints / "000001")
    stored = pipeline.transformer.state_dict()
    trained = {name.removeprefix("transformer."): weight for name, weight in trained.items()}
    assert all(torch.equal(stored[name], weight) for name, weight in trained.items())
    before = getattr(diffusers, kind).from_pretrained(checkpoints(key), **absent).transformer.state_dict()
    assert any(not torch.equal(before[name], weight) for name, weight in trained.items())
