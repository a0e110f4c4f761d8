"""What is exported of the embedded model, whose pipeline lies in its package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cards
import pytest
import torch
from families import LORA, train_two_iterations
from peft.tuners.lora import Linear
from saved import weights

from flowfactory import UserError
from flowfactory.runs.checkpoints.shards import StoredTensor
from flowfactory.runs.checkpoints.stored_modules import StoredModule
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.export.adapters import write_formatted
from flowfactory.runs.export.export import export
from flowfactory.runs.export.origin import Origin, find_origin
from flowfactory_tiny.tiny import TinyConfig


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], RunDirectory]:
    """``trained(train)``: a run of two iterations."""
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "train.txt").write_text("a red circle\na blue square\n")

    def run(train: Any) -> RunDirectory:
        model, sampling = {"name": "tiny", "train": train}, {"size": [32, 32]}
        return train_two_iterations(model, {"name": "reinforce"}, tmp_path / "train.txt", tmp_path, sampling=sampling)

    return run


def test_the_code_of_its_card_finds_the_pipeline_in_the_package(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export(trained(LORA), tmp_path / "out", None, None, None)
    pipeline = cards.run_code(out, monkeypatch)["pipeline"]
    adapted: list[Any] = [layer for layer in pipeline.transformer.modules() if isinstance(layer, Linear)]
    assert adapted
    assert any(bool(torch.any(layer.get_delta_weight("default_0"))) for layer in adapted)
    text = (out / "README.md").read_text()
    assert "`files` finds the model in the installed package `flowfactory_tiny`." in text
    assert "base_model" not in cards.head(out)

    lacking = "the family of tiny says not what ComfyUI calls its layers, which takes Family.comfyui of its package"
    with pytest.raises(UserError, match=rf"^--format comfyui: {lacking}; write --format diffusers$"):
        export(RunDirectory(tmp_path / "run"), tmp_path / "other", None, None, None, "comfyui")


def test_adapters_of_embeddings_are_not_written_for_comfyui_which_would_pass_them_over(tmp_path: Path) -> None:
    factors = {f"places.lora_embedding_{factor}.default": StoredTensor((2, 4), torch.float32, ()) for factor in "AB"}
    modules, model = [StoredModule("transformer", None, factors)], TinyConfig.model_validate({})
    told = r"^--format comfyui: ComfyUI reads no adapter of an embedding, as places is; write --format diffusers$"
    with pytest.raises(UserError, match=told):
        write_formatted(modules, tmp_path, "comfyui", model, find_origin(model), "title")
    assert not list(tmp_path.iterdir())


def test_the_code_of_its_card_opens_a_full_fine_tune(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = trained("full")
    out = export(directory, tmp_path / "out", None, None, None)
    pipeline = cards.run_code(out, monkeypatch)["pipeline"]
    last = weights(directory.checkpoints / "000002")
    assert all(torch.equal(weight, last[f"transformer.{name}"]) for name, weight in pipeline.transformer.named_parameters())


def test_a_hub_id_is_the_base_model_of_a_card() -> None:
    known = find_origin(TinyConfig.model_validate({"path": "owner/pipeline"}))
    assert known == Origin("owner/pipeline", pipeline=True, hub=True)
