"""What trains, and that diffusers itself loads what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfyui
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_krea2_transformer_checkpoint_to_diffusers
from families import LORA, nudge
from text_to_image import TextToImage, check_adapters, check_all_weights, check_bf16, check_every_weight, check_exports

from flowfactory.testing import check_model

LAYERS = (
    *(f"attn.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0", "to_gate")),
    *(f"ff.{layer}" for layer in ("gate", "up", "down")),
)
BLOCKS = (
    *("text_fusion.layerwise_blocks.0", "text_fusion.refiner_blocks.0"),
    *("transformer_blocks.0", "transformer_blocks.1"),
)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("train", ["full", LORA], ids=["full", "lora"])
def test_the_model_keeps_its_contract(family: TextToImage, train: Any, guidance: float) -> None:
    check_model(family.options(train=train), size=(32, 48), guidance=guidance)


def test_adapters_land_on_attention_and_feed_forward_of_every_block(family: TextToImage) -> None:
    policy = family.bench(train=LORA).policy
    assert set(policy.adapted) == {f"transformer.{block}.{layer}" for block in BLOCKS for layer in LAYERS}
    assert all("lora_" in name for name in policy.parameters)


@pytest.mark.parametrize("guidance", [0.0, 4.0])
def test_diffusers_loads_the_adapters_and_draws_the_same(family: TextToImage, tmp_path: Path, guidance: float) -> None:
    check_adapters(family, tmp_path, guidance)


def test_every_loader_of_adapters_draws_what_was_trained(family: TextToImage, tmp_path: Path) -> None:
    check_exports(family, tmp_path, "krea2")


def test_comfyui_has_a_name_for_every_layer(family: TextToImage, tmp_path: Path) -> None:
    transformer = family.pipeline().transformer
    weights = comfyui.linear_weights(transformer)
    comfyui.check_against_diffusers(weights, "krea2", convert_krea2_transformer_checkpoint_to_diffusers)
    train = {"lora": {"rank": 1, "targets": list(weights)}}
    made = family.bench(train=train)
    nudge(made)
    comfyui.check_names(made.policy, family.options(train=train), "krea2", transformer, tmp_path)


def test_diffusers_loads_the_fully_trained_transformer(family: TextToImage, tmp_path: Path) -> None:
    check_all_weights(family, tmp_path)


def test_full_training_reaches_every_weight(family: TextToImage) -> None:
    check_every_weight(family)


@pytest.mark.parametrize("train", ["full", LORA], ids=["full", "lora"])
def test_bf16_draws_and_replays_what_it_drew_with_its_norms_in_float32(family: TextToImage, tmp_path: Path, train: Any) -> None:
    stored = check_bf16(family, tmp_path, train)
    rounded = {dtype for name, dtype in stored.items() if "norm" not in name}
    assert rounded == ({torch.float32} if train == "full" else {torch.bfloat16})
    assert {dtype for name, dtype in stored.items() if "norm" in name} == {torch.float32}
