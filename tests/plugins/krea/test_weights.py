"""What trains, and that diffusers itself loads what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfyui
import pytest
import torch
from adapter_loaders import check_every_loader
from diffusers import Krea2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_krea2_transformer_checkpoint_to_diffusers
from families import LORA, nudge, relative_difference
from saved import save_trained

from flowfactory import Step, flow
from flowfactory.flow.dynamics import ODE
from flowfactory.testing import check_model

PROMPTS = ("a photo of a red circle", "green square")
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
def test_the_model_keeps_its_contract(options: Any, checkpoint: Any, train: Any, guidance: float) -> None:
    check_model(options(checkpoint(), train=train), size=(32, 48), guidance=guidance)


def test_adapters_land_on_attention_and_feed_forward_of_every_block(bench_of: Any, checkpoint: Any) -> None:
    policy = bench_of(checkpoint(), PROMPTS, train=LORA).policy
    assert set(policy.adapted) == {f"transformer.{block}.{layer}" for block in BLOCKS for layer in LAYERS}
    assert all("lora_" in name for name in policy.parameters)


@pytest.mark.parametrize("guidance", [0.0, 4.0])
def test_diffusers_loads_the_adapters_and_draws_the_same(
    bench_of: Any, pipeline_of: Any, drawn_by: Any, checkpoint: Any, tmp_path: Path, guidance: float
) -> None:
    made = bench_of(checkpoint(), PROMPTS, guidance=guidance, train=LORA)
    pipeline = pipeline_of(checkpoint())
    assert relative_difference(made.draw(2).latents, drawn_by(pipeline, made).latents) < 1e-5, "fresh adapters change something"
    nudge(made)
    ours = made.draw(2).latents
    save_trained(made.policy, tmp_path)
    assert relative_difference(ours, drawn_by(pipeline, made).latents) > 1e-2, (
        "the adapters change nothing that could be compared"
    )
    pipeline.load_lora_weights(tmp_path)
    assert relative_difference(ours, drawn_by(pipeline, made).latents) < 1e-5
    pipeline.fuse_lora()
    assert relative_difference(ours, drawn_by(pipeline, made).latents) < 1e-4


def test_every_loader_of_adapters_draws_what_was_trained(
    options: Any, bench_of: Any, pipeline_of: Any, drawn_by: Any, checkpoint: Any, tmp_path: Path
) -> None:
    made = bench_of(checkpoint(), PROMPTS, guidance=4.0, train=LORA)
    nudge(made)
    check_every_loader(
        made.policy,
        options(checkpoint(), train=LORA),
        "krea2",
        made.draw(2).latents,
        lambda: pipeline_of(checkpoint()),
        lambda pipeline: drawn_by(pipeline, made).latents,
        tmp_path,
    )


def test_comfyui_has_a_name_for_every_layer(
    options: Any, bench_of: Any, pipeline_of: Any, checkpoint: Any, tmp_path: Path
) -> None:
    transformer = pipeline_of(checkpoint()).transformer
    weights = comfyui.linear_weights(transformer)
    comfyui.check_against_diffusers(weights, "krea2", convert_krea2_transformer_checkpoint_to_diffusers)
    train = {"lora": {"rank": 1, "targets": list(weights)}}
    made = bench_of(checkpoint(), PROMPTS, train=train)
    nudge(made)
    comfyui.check_names(made.policy, options(checkpoint(), train=train), "krea2", transformer, tmp_path)


def test_diffusers_loads_the_fully_trained_transformer(
    bench_of: Any, pipeline_of: Any, drawn_by: Any, checkpoint: Any, tmp_path: Path
) -> None:
    made = bench_of(checkpoint(), PROMPTS, guidance=4.0)
    nudge(made)
    ours = made.draw(2).latents
    save_trained(made.policy, tmp_path)
    pipeline = pipeline_of(checkpoint())
    assert relative_difference(ours, drawn_by(pipeline, made).latents) > 1e-2, "training changed nothing that could be compared"
    pipeline.transformer = Krea2Transformer2DModel.from_pretrained(tmp_path / "transformer")
    assert relative_difference(ours, drawn_by(pipeline, made).latents) < 1e-5


def test_full_training_reaches_every_weight(bench_of: Any, checkpoint: Any) -> None:
    made = bench_of(checkpoint(), PROMPTS, guidance=4.0)
    latents = flow.noise(made.plan, (4, 4, 4))
    step = Step(latents, torch.full((2,), 0.7), made.conditions, 4.0, ODE())
    velocity = made.policy.evaluate(step).velocity
    target = torch.randn(velocity.shape, generator=torch.Generator().manual_seed(1))
    parameters = made.policy.parameters
    gradients = torch.autograd.grad((velocity - target).square().sum(), list(parameters.values()), allow_unused=True)
    assert {
        name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None or not gradient.any()
    } == set()
