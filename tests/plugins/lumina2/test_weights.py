"""What trains, and that diffusers itself loads what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import LORA
from text_to_image import TextToImage, check_adapters, check_all_weights, check_bf16, check_every_weight, check_exports

from flowfactory.testing import check_model

LAYERS = (
    *(f"attn.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"feed_forward.linear_{number}" for number in (1, 2, 3)),
)
BLOCKS = ("noise_refiner.0", "context_refiner.0", "layers.0", "layers.1")


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("train", ["full", LORA], ids=["full", "lora"])
def test_the_model_keeps_its_contract(family: TextToImage, train: Any, guidance: float) -> None:
    check_model(family.options(train=train, cfg_trunc_ratio=0.5), size=(16, 32), guidance=guidance)


def test_adapters_land_on_attention_and_feed_forward_of_every_block(family: TextToImage) -> None:
    policy = family.bench(train=LORA).policy
    assert set(policy.adapted) == {f"transformer.{block}.{layer}" for block in BLOCKS for layer in LAYERS}


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_diffusers_loads_the_adapters_and_draws_the_same(family: TextToImage, tmp_path: Path, guidance: float) -> None:
    check_adapters(family, tmp_path, guidance)


def test_every_loader_of_adapters_draws_what_was_trained(family: TextToImage, tmp_path: Path) -> None:
    check_exports(family, tmp_path)


def test_diffusers_loads_the_fully_trained_transformer(family: TextToImage, tmp_path: Path) -> None:
    check_all_weights(family, tmp_path)


@pytest.mark.parametrize("train", ["full", LORA], ids=["full", "lora"])
def test_bf16_draws_and_replays_what_it_drew(family: TextToImage, tmp_path: Path, train: Any) -> None:
    stored = set(check_bf16(family, tmp_path, train).values())
    assert stored == ({torch.float32} if train == "full" else {torch.bfloat16})


def test_full_training_reaches_every_weight(family: TextToImage) -> None:
    check_every_weight(family)
