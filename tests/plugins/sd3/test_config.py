"""Whole runs on a tiny checkpoint, and what a config may not say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import policy_gradient
import pytest
import torch
from families import check_sizes
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from flowfactory import Policy, RunInfo, UserError, hookimpl
from flowfactory.cli.main import app
from flowfactory.config.loading import load, validate
from flowfactory.runs.train import train
from flowfactory.testing.two_parameter import FILE

PLUGINS = [FILE, policy_gradient.__file__]
LORA = {"lora": {"rank": 4, "alpha": 8}}


@pytest.fixture
def settings(checkpoint: Any, tmp_path: Path) -> dict[str, Any]:
    """A config of two iterations, as a mapping."""
    (tmp_path / "train.txt").write_text("a photo of a red circle\nblue cat\n")
    (tmp_path / "heldout.txt").write_text("green square\n")
    return {
        "model": {"name": "sd3", "path": str(checkpoint()), "max_sequence_length": 16, "train": LORA},
        "algorithm": "reinforce",
        "rewards": {"light": "bright"},
        "prompts": {"train": str(tmp_path / "train.txt"), "heldout": str(tmp_path / "heldout.txt")},
        "sampling": {
            "groups": 2,
            "group_size": 4,
            "size": [32, 32],
            "steps": 3,
            "guidance": 2.0,
            "batch_size": 8,
            "dynamics": {"name": "flow-sde"},
        },
        "training": {"iterations": 2, "batch_size": 8, "optimizer": {"lr": 1e-2}},
        "output": {"dir": str(tmp_path / "run")},
        "plugins": PLUGINS,
        "device": "cpu",
    }


class Watch:
    """Sees the policy of a run."""

    def __init__(self) -> None:
        self.before: dict[str, torch.Tensor] = {}
        self.policy: Policy | None = None

    @hookimpl
    def run_started(self, run: RunInfo, policy: Policy) -> None:
        self.policy = policy
        self.before = {name: weight.detach().clone() for name, weight in policy.parameters.items()}


@pytest.mark.parametrize("training", ["full", LORA], ids=["full", "lora"])
def test_bf16_trains_float32_weights_and_replays_within_the_tolerance(settings: dict[str, Any], training: Any) -> None:
    settings["model"]["train"] = training
    settings["training"]["precision"] = "bf16"
    watch, said = Watch(), list[str]()
    directory = train(validate(settings), observers=[watch], say=said.append)
    assert [record["iteration"] for record in directory.records()] == [0, 1, 2]
    replayed = [line for line in said if "replaying 2 recorded steps gives a ratio of 1 within" in line]
    assert len(replayed) == 1
    assert watch.policy is not None
    after = watch.policy.parameters
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    moved = [name for name, weight in after.items() if not torch.equal(weight, watch.before[name])]
    assert len(moved) > 0.9 * len(after)
    stored = {weight.dtype for name, weight in watch.policy.modules["transformer"].named_parameters() if "lora" not in name}
    assert stored == ({torch.float32} if training == "full" else {torch.bfloat16})


def test_the_command_line_trains_samples_and_evaluates(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [sys.executable, "-m", "flowfactory", "run", str(config)]
    environment = {**os.environ, "FLOWFACTORY_PLUGINS": "sd3"}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "Warning" not in ran.stderr
    preflight = [line.split("preflight: ")[1] for line in ran.stdout.splitlines() if "preflight: " in line]
    assert len(preflight) == 4, ran.stdout
    assert "LoRA on 25 layers" in preflight[0]
    assert "light in 100% of the groups" in preflight[1]
    assert "replaying 2 recorded steps gives a ratio of 1" in preflight[2]
    assert "a finite gradient reaches all 50 trainable tensors" in preflight[3]
    adapters = load_file(tmp_path / "run" / "checkpoints" / "000002" / "pytorch_lora_weights.safetensors")
    assert len(adapters) == 50
    assert any(bool(weight.any()) for name, weight in adapters.items() if "lora_B" in name), "nothing was trained"

    monkeypatch.chdir(tmp_path)
    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        monkeypatch.setenv(variable, "1" if variable.endswith("BARS") else "error")  # the command sets them for good
    sampled = CliRunner().invoke(app, ["sample", "run", "a red cat", "blue circle", "--count", "2"])
    assert sampled.exit_code == 0, sampled.output
    pictures = sampled.stdout.split()
    assert len(pictures) == 4
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.size == (32, 32)

    evaluated = CliRunner().invoke(app, ["eval", "run"])
    assert evaluated.exit_code == 0, evaluated.output
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scored = json.loads(evaluated.stdout)
    assert scored["eval/samples"] == 1
    assert scored["eval/light/mean"] == pytest.approx(metrics[-1]["eval/light/mean"], abs=1e-6)
    assert scored["eval/light/mean"] != pytest.approx(metrics[0]["eval/light/mean"], abs=1e-6), "the start was scored"


@pytest.mark.parametrize(
    ("section", "size", "nearest"),
    [
        ("sampling", [30, 32], [32, 32]),
        ("sampling", [32, 45], [32, 44]),
        ("sampling", [1, 32], [4, 32]),
        ("sampling", [96, 64], [64, 64]),  # the transformer has positions for 16 patches of 4 pixels
        ("evaluation", [64, 70], [64, 64]),
    ],
)
def test_a_size_the_model_cannot_draw_is_refused_with_the_nearest(
    settings: dict[str, Any], section: str, size: list[int], nearest: list[int]
) -> None:
    check_sizes(settings, section, size, nearest)


def test_the_largest_size_is_drawn(opened: Any, checkpoint: Any) -> None:
    assert opened(checkpoint()).draw(["a red circle"], size=(64, 64), steps=1).media.shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("weights/of/sd3", "there is no folder {here}/weights/of/sd3"),
        ("./missing", "there is no folder {here}/missing"),
        ("../missing", "there is no folder {above}/missing"),
        ("/abs/missing", "there is no folder /abs/missing"),
        ("~/missing", "there is no folder {home}/missing"),
        ("missing", "there is no folder {here}/missing, and 'missing' is no hub id (owner/name)"),
        (
            "there/missing",
            "there is no folder {here}/there/missing; if the hub id is meant, download it first: hf download there/missing",
        ),
        (
            "there/sd3.safetensors",
            "{here}/there/sd3.safetensors is a file, and a folder is read; give one that save_pretrained of its library made",
        ),
    ],
)
def test_a_path_where_no_folder_is_is_said_as_such(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, told: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "sd3.safetensors").write_bytes(b"")
    settings["model"]["path"] = path
    with pytest.raises(UserError) as refused:
        validate(settings, source="config.yaml", folder=tmp_path)
    places = {"here": tmp_path, "above": tmp_path.parent, "home": Path.home()}
    assert str(refused.value) == f"config.yaml: model.path: {told.format(**places)}"
    (tmp_path / "hub" / "models--there--missing").mkdir(parents=True)
    if path == "there/missing":
        assert validate(settings, folder=tmp_path), "what was downloaded before is no folder beside the config"


def test_a_folder_that_holds_no_pipeline_is_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["model"]["path"] = str(tmp_path)
    with pytest.raises(UserError, match=rf"model\.path: {tmp_path} has no model_index\.json; give the folder") as refused:
        validate(settings)
    assert "\n" not in str(refused.value)


def test_the_example_is_of_the_released_checkpoint_and_draws_as_it_learns(tmp_path: Path) -> None:
    pytest.importorskip("flowfactory_rewards", reason="the reward of the example")
    pytest.importorskip("flowfactory_grpo", reason="its algorithm")
    chosen = load("sd3", out=tmp_path / "run")
    assert chosen.model.path == "stabilityai/stable-diffusion-3.5-medium"  # type: ignore[attr-defined]
    assert chosen.sampling.batch_size == chosen.training.batch_size, "the first ratio would be rounding"
    assert chosen.sampling.groups * chosen.sampling.group_size % (chosen.training.updates * chosen.training.batch_size) == 0
