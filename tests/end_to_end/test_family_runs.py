"""Every model family trains, with coupled and decoupled algorithms, adapters and all weights, on tiny real checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import saved
import tiny_wan
from families import LORA, train_two_iterations
from family_cases import CASES, GRPO, NFT, prompts, sections
from safetensors.torch import load_file
from typer.testing import CliRunner

from flowfactory.cli.main import app
from flowfactory.config.loading import load
from flowfactory.discovery.discover import discover


@pytest.mark.parametrize(
    ("algorithm", "train"),
    [
        pytest.param(GRPO, LORA, id="grpo-lora", marks=pytest.mark.distributed),  # as test_family_commands trains
        pytest.param(GRPO, "full", id="grpo-full"),
        pytest.param(NFT, LORA, id="nft-lora"),
        pytest.param(NFT, "full", id="nft-full", marks=pytest.mark.distributed),  # as it trains what is exported
    ],
)
@pytest.mark.parametrize("key", CASES)
def test_two_iterations_train_and_are_drawn(
    key: str, algorithm: dict[str, Any], train: Any, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    case = CASES[key]
    model = {"name": case.name, "path": str(checkpoints(key)), "train": train, **case.options}
    directory = train_two_iterations(model, algorithm, prompts(case, tmp_path), tmp_path, **sections(case))
    records = directory.records()
    assert [record["iteration"] for record in records] == [0, 1, 2]
    assert all(record["grad_norm"] > 0 for record in records[1:])
    assert records[-1]["eval/light/mean"] != records[0]["eval/light/mean"], "training changed nothing"
    ending = ".mp4" if len(case.size) == 3 else ".png"
    assert [item["path"].suffix for item in directory.read_samples(2)] == [ending] * 2
    folder = directory.checkpoints / "000002"
    if train != "full":
        adapters = load_file(folder / "pytorch_lora_weights.safetensors")
        assert any(bool(weight.any()) for name, weight in adapters.items() if "lora_B" in name)
    else:
        assert any(bool(weight.any()) for weight in saved.weights(folder).values())


def test_both_experts_of_wan_train_in_one_run(tmp_path: Path) -> None:
    folder = tiny_wan.text_to_video(tmp_path / "checkpoint", "a14b")
    case = CASES["wan-t2v"]
    model = {"name": "wan-t2v", "path": str(folder), "train": LORA}
    directory = train_two_iterations(model, NFT, prompts(case, tmp_path), tmp_path, **sections(case))
    folder = directory.checkpoints / "000002"
    for place in (folder, folder / "transformer_2"):
        adapters = load_file(place / "pytorch_lora_weights.safetensors")
        assert any(bool(weight.any()) for name, weight in adapters.items() if "lora_B" in name)


def test_held_out_videos_are_told_of_as_videos(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    case, said = CASES["wan-t2v"], list[str]()
    model = {"name": "wan-t2v", "path": str(checkpoints("wan-t2v")), "train": LORA}
    train_two_iterations(model, NFT, prompts(case, tmp_path), tmp_path, said.append, **sections(case))
    told = [line.partition(":")[0] for line in said if line.startswith("held-out")]
    assert told == [f"held-out score after iteration {number}, 2 videos" for number in (0, 2)]


MODELS = sorted({case.name for case in CASES.values()})
EXAMPLES = [*MODELS, "sd3"]
"""All models but the embedded one, whose examples are of algorithms."""


def test_every_model_has_a_case_and_an_example() -> None:
    components = discover().components
    assert set(components["model"]) - {"sd3", "tiny"} == set(MODELS)
    assert set(EXAMPLES) == set(components["model"]) - {"tiny"}
    assert set(EXAMPLES) <= set(components["example"])


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_model_is_for_its_real_checkpoint(name: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", name, "--dry-run", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, repr(done.exception)
    config = load(name, out=tmp_path / "run")
    assert config.model.name == name  # type: ignore[attr-defined]
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", config.model.path)  # type: ignore[attr-defined]
    assert config.training.precision == "bf16"
    if config.algorithm.trust_region:
        assert config.sampling.batch_size == config.training.batch_size, "the first ratio would be rounding"
