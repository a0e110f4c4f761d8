"""What trains, and that diffusers itself loads what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfyui
import pytest
import torch
from diffusers import ChromaTransformer2DModel
from diffusers.loaders.single_file_utils import convert_chroma_transformer_checkpoint_to_diffusers
from families import LORA, nudge
from text_to_image import TextToImage, check_adapters, check_all_weights, check_bf16, check_every_weight, check_exports

from flowfactory.testing import check_model

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
DOUBLE = (
    *(*QKV, "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("train", ["full", LORA], ids=["full", "lora"])
def test_the_model_keeps_its_contract(family: TextToImage, train: Any, guidance: float) -> None:
    check_model(family.options(train=train, mask_padding=guidance > 1), size=(16, 32), guidance=guidance)


def test_adapters_land_on_attention_and_feed_forward_of_every_block(family: TextToImage) -> None:
    policy = family.bench(train=LORA).policy
    double = {f"transformer.transformer_blocks.{n}.{layer}" for n in (0, 1) for layer in DOUBLE}
    single = {f"transformer.single_transformer_blocks.{n}.{layer}" for n in (0, 1) for layer in (*QKV, "proj_mlp")}
    assert set(policy.adapted) == double | single


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_diffusers_loads_the_adapters_and_draws_the_same(family: TextToImage, tmp_path: Path, guidance: float) -> None:
    check_adapters(family, tmp_path, guidance)


def test_diffusers_loads_the_fully_trained_transformer(family: TextToImage, tmp_path: Path) -> None:
    check_all_weights(family, tmp_path)


# of its RMSNorms under autocast on a CPU, where their weights are float32
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize("train", ["full", LORA], ids=["full", "lora"])
def test_bf16_draws_and_replays_what_it_drew(family: TextToImage, tmp_path: Path, train: Any) -> None:
    stored = set(check_bf16(family, tmp_path, train).values())
    assert stored == ({torch.float32} if train == "full" else {torch.bfloat16})


def test_full_training_reaches_every_weight(family: TextToImage) -> None:
    check_every_weight(family)


def test_comfyui_has_a_name_for_every_layer(family: TextToImage, tmp_path: Path) -> None:
    transformer = family.pipeline().transformer
    weights = comfyui.linear_weights(transformer)
    with torch.device("meta"):  # the converter knows no other width
        released = comfyui.linear_weights(ChromaTransformer2DModel(num_layers=2, num_single_layers=2, approximator_layers=2))
    assert set(released) == set(weights)
    sizes = {name: torch.randn(len(weight), 1) for name, weight in released.items()}
    comfyui.check_against_diffusers(sizes, "chroma", convert_chroma_transformer_checkpoint_to_diffusers)
    train = {"lora": {"rank": 2, "targets": list(weights)}}
    made = family.bench(train=train)
    nudge(made)
    comfyui.check_names(made.policy, family.options(train=train), "chroma", transformer, tmp_path)


def test_every_loader_of_adapters_draws_what_was_trained(family: TextToImage, tmp_path: Path) -> None:
    check_exports(family, tmp_path, "chroma")
