"""What ``flowfactory export`` writes, diffusers loads by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from families import LORA, train_two_iterations
from safetensors.torch import load_file
from typer.testing import CliRunner

from flowfactory import UserError
from flowfactory.cli.main import app
from flowfactory.runs.checkpoints import load
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.export import export
from flowfactory.training.setup import prepare_run

ALGORITHM = {"name": "reinforce"}


@pytest.fixture
def trained(checkpoint: Any, tmp_path: Path) -> Any:
    (tmp_path / "train.txt").write_text("a photo of a red circle\nblue cat\n")

    def run(train: Any, **sections: Any) -> RunDirectory:
        model = {"name": "sd3", "path": str(checkpoint()), "max_sequence_length": 16, "train": train}
        sections = {"sampling": {"size": [32, 32]}, **sections}
        return train_two_iterations(model, ALGORITHM, tmp_path / "train.txt", tmp_path, **sections)

    return run


def picture(pipeline: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    drawn: torch.Tensor = pipeline(
        prompt="blue cat",
        height=32,
        width=32,
        num_inference_steps=2,
        guidance_scale=1.0,
        latents=noise,
        max_sequence_length=16,
        output_type="pt",
    ).images
    return drawn


def transformer_of(directory: RunDirectory, weights: str | None = None) -> Any:
    """The transformer of the run's last checkpoint, in this process."""
    run = prepare_run(directory.load_config(), trackers=False)
    run.assembly.hooks.run_started(run.info, run.policy)
    load.load(directory.checkpoints / "000002", run.policy)
    with run.policy.using(weights):
        return {name: weight.detach().clone() for name, weight in run.policy.modules["transformer"].state_dict().items()}


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_a_full_fine_tune_is_a_pipeline_of_its_own(
    trained: Any, checkpoint: Any, tmp_path: Path, precision: str | None
) -> None:
    directory = trained("full")
    out = export(directory, tmp_path / "out", None, None, precision)
    pipeline = DiffusionPipeline.from_pretrained(out)
    assert isinstance(pipeline, StableDiffusion3Pipeline)
    dtype = torch.bfloat16 if precision else torch.float32
    stored = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, weight in transformer_of(directory).items():
        assert torch.equal(stored[name], weight.to(dtype)), name
        assert stored[name].dtype == dtype
    before = picture(StableDiffusion3Pipeline.from_pretrained(checkpoint()))
    assert not torch.allclose(picture(pipeline), before, atol=1e-3)
    assert [path.name for path in tmp_path.glob(".out*")] == []


def test_adapters_are_loaded_by_diffusers(trained: Any, checkpoint: Any, tmp_path: Path) -> None:
    directory = trained(LORA)
    out = export(directory, tmp_path / "out", None, None, None)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "pytorch_lora_weights.safetensors"]
    pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoint())
    before = picture(pipeline)
    pipeline.load_lora_weights(out)
    assert not torch.allclose(picture(pipeline), before, atol=1e-3)


def test_an_average_of_the_weights_can_be_exported(trained: Any, tmp_path: Path) -> None:
    directory = trained("full", evaluation={"ema": {"name": "constant", "decay": 0.5}})
    out = export(directory, tmp_path / "out", None, "evaluation", None)
    stored = StableDiffusion3Pipeline.from_pretrained(out).transformer.state_dict()
    average, present = transformer_of(directory, "evaluation"), transformer_of(directory)
    assert all(torch.equal(stored[name], weight) for name, weight in average.items())
    assert any(not torch.equal(stored[name], weight) for name, weight in present.items())
    assert "kept as `evaluation`" in (out / "README.md").read_text()
    with pytest.raises(UserError, match=r"keeps no weights called 'ema'; there is evaluation$"):
        export(directory, tmp_path / "again", None, "ema", None)
    assert not (tmp_path / "again").exists()


def test_the_card_says_what_it_is_and_how_to_load_it(trained: Any, checkpoint: Any, tmp_path: Path) -> None:
    directory = trained(LORA)
    text = (export(directory, tmp_path / "out", None, None, None) / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head == {"library_name": "diffusers", "tags": ["flowfactory", "reinforcement-learning", "lora"]}
    assert "2 iterations of `reinforce` with the rewards `bright` (weight 1)" in text
    assert str(checkpoint().parent) not in text, "the place of a folder is nobody else's business"
    records = directory.records()
    assert f"| light | {records[0]['eval/light/mean']:.4f} | {records[-1]['eval/light/mean']:.4f} |" in text
    assert 'pipeline.load_lora_weights("this folder")' in text


def test_the_command_exports_once(trained: Any, tmp_path: Path) -> None:
    directory = trained(LORA)
    done = CliRunner().invoke(app, ["export", str(directory.path), str(tmp_path / "out")])
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "out"))
    again = CliRunner().invoke(app, ["export", str(directory.path), str(tmp_path / "out")])
    assert isinstance(again.exception, UserError)
    assert "already exists" in str(again.exception)
    other = CliRunner().invoke(app, ["export", str(directory.path), str(tmp_path / "b"), "--precision", "fp8"])
    assert str(other.exception) == "--precision fp8: write one of float32, bf16"
