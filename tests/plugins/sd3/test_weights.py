"""What trains, and that diffusers itself loads what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfyui
import pytest
import torch
from adapter_loaders import check_every_loader
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from saved import save_trained
from torch import Tensor

from flowfactory import Trajectory, flow
from flowfactory.policy.policy import REFERENCE
from flowfactory.testing import check_model
from flowfactory_sd3.sd3 import SD3Config

LORA = {"lora": {"rank": 3, "alpha": 7.5}}
PROMPTS = ("a photo of a red circle", "green square")


def nudge(model: Any, scale: float = 0.3) -> None:
    """Move every trainable weight, as training would."""
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.policy.parameters.values():
            weight.add_(torch.randn(weight.shape, generator=source), alpha=scale * float(weight.std()) + 0.02)
    model.policy.mark_changed()


def theirs(pipeline: Any, model: Any, guidance: float) -> Tensor:
    noise = flow.noise(model.plan(PROMPTS, (32, 32), 4, guidance), (4, 16, 16))
    latents: Tensor = pipeline(
        prompt=list(PROMPTS),
        height=32,
        width=32,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=noise,
        max_sequence_length=16,
        output_type="latent",
    ).images
    return latents


def apart(ours: Trajectory, latents: Tensor) -> float:
    return float((ours.latents - latents).abs().max() / latents.abs().max())


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("train", ["full", LORA], ids=["full", "lora"])
def test_the_model_keeps_its_contract(checkpoint: Any, train: Any, guidance: float) -> None:
    options = {"path": str(checkpoint()), "train": train, "max_sequence_length": 16}
    check_model(SD3Config.model_validate(options), size=(32, 32), guidance=guidance)


def test_adapters_land_on_every_projection_of_attention_and_feed_forward(opened: Any, checkpoint: Any) -> None:
    model = opened(checkpoint(dual=True), LORA)
    joint = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")
    expected = {
        *(f"transformer.transformer_blocks.{block}.attn.{layer}" for block in (0, 1) for layer in joint),
        *(f"transformer.transformer_blocks.{block}.ff.net.{layer}" for block in (0, 1) for layer in ("0.proj", "2")),
        *(f"transformer.transformer_blocks.0.attn2.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")),
        # the last block gives the text no way out
        "transformer.transformer_blocks.0.attn.to_add_out",
        *(f"transformer.transformer_blocks.0.ff_context.net.{layer}" for layer in ("0.proj", "2")),
    }
    assert set(model.policy.adapted) == expected
    assert len(model.policy.adapted) == len(expected) == 25
    assert len(model.policy.parameters) == 2 * 25
    assert all("lora_" in name for name in model.policy.parameters)


def test_fresh_adapters_change_nothing(opened: Any, checkpoint: Any) -> None:
    plain = opened(checkpoint()).draw(PROMPTS)
    adapted = opened(checkpoint(), LORA).draw(PROMPTS)
    assert apart(adapted, plain.latents) < 1e-5  # a frozen weight meets other kernels than one that trains


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("dual", [False, True], ids=["sd3", "sd3.5-medium"])
def test_diffusers_loads_the_adapters_and_draws_the_same(
    opened: Any, diffusers_pipeline: Any, checkpoint: Any, tmp_path: Path, dual: bool, guidance: float
) -> None:
    folder = checkpoint(dual=dual)
    model = opened(folder, LORA)
    nudge(model)
    ours = model.draw(PROMPTS, guidance=guidance)
    save_trained(model.policy, tmp_path)
    pipeline = diffusers_pipeline(folder)
    assert apart(ours, theirs(pipeline, model, guidance)) > 1e-2, "the adapters change nothing that could be compared"
    pipeline.load_lora_weights(tmp_path)
    assert apart(ours, theirs(pipeline, model, guidance)) < 1e-5
    pipeline.fuse_lora()
    assert apart(ours, theirs(pipeline, model, guidance)) < 1e-4


def test_every_loader_of_adapters_draws_what_was_trained(
    opened: Any, diffusers_pipeline: Any, checkpoint: Any, tmp_path: Path
) -> None:
    folder = checkpoint(dual=True)
    model = opened(folder, LORA)
    nudge(model)
    config = SD3Config.model_validate({"path": str(folder), "train": LORA})
    ours, out = model.draw(PROMPTS, guidance=4.0).latents, tmp_path / "exported"
    out.mkdir()
    check_every_loader(
        model.policy,
        config,
        "sd3",
        ours,
        lambda: diffusers_pipeline(folder),
        lambda pipeline: theirs(pipeline, model, 4.0),
        out,
    )


def test_comfyui_has_a_name_for_every_layer(opened: Any, diffusers_pipeline: Any, checkpoint: Any, tmp_path: Path) -> None:
    folder = checkpoint(dual=True)
    transformer = diffusers_pipeline(folder).transformer
    weights = comfyui.linear_weights(transformer)
    comfyui.check_against_diffusers(weights, "sd3", convert_sd3_transformer_checkpoint_to_diffusers)
    train = {"lora": {"rank": 2, "targets": list(weights)}}
    model = opened(folder, train)
    nudge(model)
    config = SD3Config.model_validate({"path": str(folder), "train": train})
    comfyui.check_names(model.policy, config, "sd3", transformer, tmp_path)


def test_the_reference_of_adapters_is_the_checkpoint(opened: Any, diffusers_pipeline: Any, checkpoint: Any) -> None:
    model = opened(checkpoint(), LORA)
    nudge(model)
    moved = model.draw(PROMPTS)
    model.policy.keep_reference()
    with model.policy.using(REFERENCE):
        reference = model.draw(PROMPTS)
    original = theirs(diffusers_pipeline(checkpoint()), model, 1.0)
    assert apart(reference, original) < 1e-5
    assert apart(moved, original) > 1e-2
    assert torch.equal(model.draw(PROMPTS).latents, moved.latents)


def test_diffusers_loads_the_fully_trained_transformer(
    opened: Any, diffusers_pipeline: Any, checkpoint: Any, tmp_path: Path
) -> None:
    model = opened(checkpoint(), "full")
    nudge(model)
    ours = model.draw(PROMPTS, guidance=4.0)
    save_trained(model.policy, tmp_path)
    transformer = SD3Transformer2DModel.from_pretrained(tmp_path / "transformer")
    loaded = transformer.state_dict()
    trained = {name.removeprefix("transformer."): weight for name, weight in model.policy.parameters.items()}
    assert set(trained) == {name for name, _ in transformer.named_parameters()}
    assert all(torch.equal(loaded[name], weight) for name, weight in trained.items())
    pipeline = diffusers_pipeline(checkpoint())
    assert apart(ours, theirs(pipeline, model, 4.0)) > 1e-2, "training changed nothing that could be compared"
    pipeline.transformer = transformer
    assert apart(ours, theirs(pipeline, model, 4.0)) < 1e-5


@pytest.mark.parametrize("dual", [False, True], ids=["sd3", "sd3.5-medium"])
def test_full_training_reaches_every_weight_but_the_queries_of_text_nobody_reads(
    opened: Any, checkpoint: Any, dual: bool
) -> None:
    """The last block computes what the text attends to and drops it: those weights have a gradient, of exactly zero."""
    model = opened(checkpoint(dual=dual), "full")
    plan = model.plan(PROMPTS, (32, 32), 4, 4.0)
    conditions = model.conditions(PROMPTS, guidance=4.0)
    step = step_at(flow.noise(plan, (4, 16, 16)), conditions, 4.0)
    velocity = model.policy.evaluate(step).velocity
    target = torch.randn(velocity.shape, generator=torch.Generator().manual_seed(1))
    parameters = model.policy.parameters
    gradients = torch.autograd.grad((velocity - target).square().sum(), list(parameters.values()), allow_unused=True)
    assert all(gradient is not None for gradient in gradients)
    still = {name for name, gradient in zip(parameters, gradients, strict=True) if not gradient.any()}
    last = "transformer.transformer_blocks.1.attn"
    assert still == {
        f"{last}.add_q_proj.weight",
        f"{last}.add_q_proj.bias",
        *({f"{last}.norm_added_q.weight"} if dual else ()),
    }


def step_at(latents: Tensor, conditions: Any, guidance: float) -> Any:
    from flowfactory import Step
    from flowfactory.flow.dynamics import ODE

    return Step(latents, torch.full((len(latents),), 0.7), conditions, guidance, ODE())
