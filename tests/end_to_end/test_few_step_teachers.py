"""A student may start from adapters: its teacher, and the roles, are the weights without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import save_file

from flowfactory import testing
from flowfactory.config.loading import validate
from flowfactory.policy import At
from flowfactory.training.setup import prepare_run
from flowfactory_distill.few_step import FAKE
from flowfactory_distill.tdm_r1 import SURROGATE
from flowfactory_tiny import FOLDER


def settings(folder: Path, train: Any) -> dict[str, Any]:
    raw = testing.settings(folder, {"name": "tdm-r1", "fake": {"steps": 1}})
    raw["model"] = {"name": "tiny", "train": train}
    raw["prompts"] = {"train": str(FOLDER / "data" / "train.txt")}
    raw["rewards"] = {"scene": {"name": "scene", "mode": "partial"}}
    raw["sampling"] |= {"size": [32, 32], "groups": 2, "group_size": 2, "steps": 2}
    return raw


def adapters(folder: Path) -> Path:
    source = torch.Generator().manual_seed(0)
    layers = [f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k")]
    module = SD3Transformer2DModel.load_config(FOLDER / "pipeline" / "transformer")
    width = module["attention_head_dim"] * module["num_attention_heads"]
    tensors = {}
    for layer in layers:
        tensors[f"{layer}.lora_A.weight"] = torch.randn(3, width, generator=source) / 3
        tensors[f"{layer}.lora_B.weight"] = torch.randn(width, 3, generator=source) / 3
    save_file(tensors, folder / "adapters.safetensors")
    return folder / "adapters.safetensors"


def test_the_teacher_and_the_roles_are_the_weights_without_the_adapters_that_the_student_starts_from(tmp_path: Path) -> None:
    started = testing.begin(settings(tmp_path, {"lora": {"from": str(adapters(tmp_path))}}))
    bare = testing.begin(settings(tmp_path, {"lora": {"rank": 3}}))
    step = bare.draw(0).experience.steps[0]
    (base,) = bare.policy.look(step, {"base": At("reference")}).values()
    asked = {name: At(name) for name in ("base", FAKE, SURROGATE, "reference")}
    found = started.policy.look(step, asked)
    for name in ("base", FAKE, SURROGATE):
        torch.testing.assert_close(found[name].velocity, base.velocity, rtol=1e-5, atol=1e-6)
    assert (found["reference"].velocity - base.velocity).abs().max() > 0.01, "the student starts elsewhere"


@pytest.mark.parametrize(
    ("role", "told"),
    [
        ("start", "; the teacher is the model without them, unless they are written as: base"),
        ("base", " are added to the frozen weights, which are the teacher; new ones train on top"),
    ],
)
def test_a_run_says_who_the_teacher_is(role: str, told: str, tmp_path: Path) -> None:
    said: list[str] = []
    raw = settings(tmp_path, {"lora": {"from": str(adapters(tmp_path)), "as": role}})
    prepare_run(validate(raw), say=said.append)
    assert any(line.endswith(told) for line in said), said


@pytest.mark.parametrize(
    ("train", "told"), [({"lora": {"rank": 2}}, "the model without adapters"), ("full", "what training starts from")]
)
def test_a_student_of_nothing_else_says_it_too(train: Any, told: str, tmp_path: Path) -> None:
    said: list[str] = []
    prepare_run(validate(settings(tmp_path, train)), say=said.append)
    assert f"the teacher is {told}" in said


def test_such_a_run_is_resumed_to_the_bit(tmp_path: Path) -> None:
    testing.check_resumes_bit_for_bit(settings(tmp_path, {"lora": {"from": str(adapters(tmp_path))}}))
