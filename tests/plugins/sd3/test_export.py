"""What ``flowfactory export`` writes, diffusers loads by itself."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cards
import comfyui
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from families import LORA, train_two_iterations
from safetensors.torch import load_file
from saved import weights
from typer.testing import CliRunner

from flowfactory import UserError
from flowfactory.cli.main import app
from flowfactory.runs.checkpoints import load
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.export.export import export
from flowfactory.training.setup import prepare_run
from flowfactory_sd3.sd3 import SD3Config

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
    assert head == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["flowfactory", "reinforcement-learning", "reinforce", "lora"],
    }
    assert "2 iterations of `reinforce`. Rewards: `light` (bright) with weight 1." in text
    assert str(checkpoint().parent) not in text, "the place of a folder is nobody else's business"
    records = directory.records()
    before, after = (f"{record['eval/light/mean']:.4f}" for record in (records[0], records[-1]))
    best, when = max((before, 0), (after, -2))
    rows = [line for line in text.splitlines() if line.startswith(("| light", "| samples"))]
    assert rows == [f"| light | {before} | {after} | {best} ({-when}) |"]


@pytest.mark.parametrize("form", ["diffusers", "comfyui", "peft"])
def test_adapters_in_every_format_draw_what_was_trained(
    trained: Any, checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    directory = trained(LORA)
    done = CliRunner().invoke(app, ["export", str(directory.path), str(tmp_path / "mine"), "--format", form])
    assert done.exit_code == 0, repr(done.exception)
    out = tmp_path / "mine"
    if form == "comfyui":
        assert sorted(path.name for path in out.iterdir()) == ["README.md", "mine.safetensors"]
        assert "Put `mine.safetensors` into `models/loras` of ComfyUI" in (out / "README.md").read_text()
        assert "comfyui" in cards.head(out)["tags"]
        pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoint())
        comfyui.load(out / "mine.safetensors", pipeline.transformer, "sd3")
    else:
        pipeline = cards.run_code(out, monkeypatch, checkpoint())["pipeline"]
        assert cards.head(out)["library_name"] == ("peft" if form == "peft" else "diffusers")
    expected = StableDiffusion3Pipeline.from_pretrained(checkpoint())
    before = picture(expected)
    merge_by_hand(expected.transformer, weights(directory.checkpoints / "000002"))
    assert not torch.allclose(picture(expected), before, atol=1e-3)
    torch.testing.assert_close(picture(pipeline), picture(expected), rtol=1e-4, atol=1e-4)


def merge_by_hand(transformer: Any, trained: dict[str, torch.Tensor]) -> None:
    """Add alpha / rank times the product of each layer's factors to its weight."""
    scale = LORA["lora"]["alpha"] / LORA["lora"]["rank"]
    with torch.no_grad():
        for name, up in trained.items():
            if ".lora_B." in name:
                layer = transformer.get_submodule(name.split(".lora_B.")[0].removeprefix("transformer."))
                layer.weight += scale * up @ trained[name.replace(".lora_B.", ".lora_A.")]


def test_the_code_of_a_full_fine_tunes_card_opens_it(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = trained("full")
    base = Path(directory.load_config().model.path)
    (base / "LICENSE.md").write_text("do no harm")
    out = export(directory, tmp_path / "out", None, None, "bf16")
    (base / "LICENSE.md").unlink()
    assert (out / "LICENSE.md").read_text() == "do no harm"
    pipeline = cards.run_code(out, monkeypatch)["pipeline"]
    for name, weight in transformer_of(directory).items():
        assert torch.equal(pipeline.transformer.state_dict()[name], weight.bfloat16().float()), name
    with pytest.raises(UserError, match=r"^--format peft is for adapters, and this run trained all weights; leave it out$"):
        export(directory, tmp_path / "other", None, None, None, "peft")


def test_a_layer_that_comfyui_does_not_know_is_named(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = trained(LORA)
    known = replace(SD3Config.family, comfyui=((r"(.+\.to_q)", r"transformer.\1"),))
    monkeypatch.setattr(SD3Config, "family", known)
    with pytest.raises(UserError, match=r"ComfyUI has no name for transformer_blocks\.\S+; write --format diffusers$"):
        export(directory, tmp_path / "out", None, None, None, "comfyui")
    assert not list(tmp_path.glob("*out*"))


def test_the_command_exports_once(trained: Any, tmp_path: Path) -> None:
    directory = trained(LORA)
    done = CliRunner().invoke(app, ["export", str(directory.path), str(tmp_path / "out")])
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "out"))
    again = CliRunner().invoke(app, ["export", str(directory.path), str(tmp_path / "out")])
    assert isinstance(again.exception, UserError)
    assert "already exists" in str(again.exception)
    other = CliRunner().invoke(app, ["export", str(directory.path), str(tmp_path / "b"), "--precision", "fp8"])
    assert str(other.exception) == "--precision fp8: write one of float32, bf16"


def test_a_pipeline_is_made_of_the_models_own_files(
    trained: Any, checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    directory = trained("full")
    config = yaml.safe_load(directory.config.read_text())
    theirs = directory.path / "model"
    shutil.copytree(checkpoint(), theirs)
    scheduler, links = checkpoint() / "scheduler/scheduler_config.json", theirs / "scheduler"
    config["model"]["path"] = str(theirs)
    directory.config.write_text(yaml.safe_dump(config))
    (links / "within.json").symlink_to("scheduler_config.json")
    assert (
        export(directory, tmp_path / "within", None, None, None) / "scheduler/within.json"
    ).read_bytes() == scheduler.read_bytes()
    (links / "notes.txt").symlink_to(secret)
    with pytest.raises(UserError, match=rf"notes\.txt leads out of {theirs}; put the file itself there, or add --trust$"):
        export(directory, tmp_path / "out", None, None, None)
    out = export(directory, tmp_path / "trusted", None, None, None, trusted=True)
    assert (out / "scheduler/notes.txt").read_text() == "mine"
    (links / "notes.txt").unlink()
    os.mkfifo(links / "pipe")
    with pytest.raises(UserError, match="pipe is no file"):
        export(directory, tmp_path / "out", None, None, None)
    (links / "pipe").unlink()
    (links / "again").symlink_to(".")
    with pytest.raises(UserError, match="once more"):
        export(directory, tmp_path / "out", None, None, None)
    assert not (tmp_path / "out").exists()


def test_links_of_a_model_that_you_have_trained_with_are_followed(trained: Any, checkpoint: Any, tmp_path: Path) -> None:
    out = export(trained("full"), tmp_path / "plain", None, None, None)
    vae = checkpoint() / "vae"
    vae.rename(tmp_path / "vae")
    try:
        vae.symlink_to(tmp_path / "vae")
        linked = export(RunDirectory(tmp_path / "run"), tmp_path / "linked", None, None, None)
    finally:
        vae.unlink()
        (tmp_path / "vae").rename(vae)
    for file in (out / "vae").iterdir():
        assert (linked / "vae" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("form", ["diffusers", "comfyui"])
def test_a_name_that_ends_in_safetensors_is_the_file_itself(trained: Any, tmp_path: Path, form: str) -> None:
    directory = trained(LORA)
    folder = export(directory, tmp_path / "folder", None, None, None, form)
    file = export(directory, tmp_path / "x.safetensors", None, None, None, form)
    (whole,) = folder.glob("*.safetensors")
    assert file.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} >= {"folder", "x.safetensors"}
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(UserError, match=r"x\.safetensors already exists; choose another file$"):
        export(directory, file, None, None, None, form)


@pytest.mark.parametrize(("train", "form", "what"), [(LORA, "peft", "adapters for peft"), ("full", None, "all weights")])
def test_what_is_several_files_is_no_file(trained: Any, tmp_path: Path, train: Any, form: str | None, what: str) -> None:
    directory, out = trained(train), tmp_path / "x.safetensors"
    with pytest.raises(UserError) as refused:
        export(directory, out, None, None, None, form)
    assert str(refused.value) == f"{out}: {what} are several files; name a folder, without .safetensors"
    assert not out.exists()
