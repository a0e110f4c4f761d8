"""What trains, and that diffusers itself loads what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfyui
import pytest
import torch
from adapter_loaders import check_every_loader
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_flux_transformer_checkpoint_to_diffusers,
)
from families import LORA, nudge, relative_difference
from flux_family import EVERY, TOKENS, Flux, drawn_by, initial_noise, make_config
from saved import save_trained

from flowfactory import Step
from flowfactory.flow.dynamics import ODE
from flowfactory.testing import check_model

PROMPTS = ("a red cat", "blue")
JOINT = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
FLUX1_LAYERS = {
    *(f"transformer_blocks.{i}.attn.{layer}" for i in (0, 1) for layer in JOINT),
    *(f"transformer_blocks.{i}.{ff}.net.{layer}" for i in (0, 1) for ff in ("ff", "ff_context") for layer in ("0.proj", "2")),
    *(f"single_transformer_blocks.{i}.attn.{layer}" for i in (0, 1) for layer in ("to_q", "to_k", "to_v")),
    *(f"single_transformer_blocks.{i}.proj_mlp" for i in (0, 1)),
}
FLUX2_LAYERS = {
    *(f"transformer_blocks.{i}.attn.{layer}" for i in (0, 1) for layer in JOINT),
    *(f"transformer_blocks.{i}.{ff}.linear_{way}" for i in (0, 1) for ff in ("ff", "ff_context") for way in ("in", "out")),
    *(f"single_transformer_blocks.{i}.attn.to_qkv_mlp_proj" for i in (0, 1)),
}


@pytest.mark.parametrize(
    ("variant", "train", "guidance"),
    [
        ("dev", "full", 3.5),
        ("dev", LORA, 1.0),
        ("schnell", LORA, 1.0),
        ("kontext", LORA, 2.5),
        ("flux2", LORA, 4.0),
        ("klein", LORA, 1.0),
        ("klein-base", "full", 4.0),
        ("klein-base", LORA, 4.0),
    ],
)
def test_the_model_keeps_its_contract(flux: Flux, variant: str, train: Any, guidance: float) -> None:
    prompts = flux.prompts(variant, *PROMPTS)
    check_model(make_config(variant, flux.folder(variant), train=train), prompts, size=(32, 32), guidance=guidance)


def test_the_model_keeps_its_contract_with_other_pictures_for_each_prompt(flux: Flux) -> None:
    prompts = [*flux.bringing(0, 1, texts=["blue"]), *flux.prompts("klein-base", "a red cat")]
    check_model(make_config("klein-base", flux.folder("klein-base"), train=LORA), prompts, size=(32, 32), guidance=3.0)


@pytest.mark.parametrize(("variant", "layers"), [("dev", FLUX1_LAYERS), ("kontext", FLUX1_LAYERS), ("flux2", FLUX2_LAYERS)])
def test_adapters_land_on_attention_and_feed_forward(flux: Flux, variant: str, layers: set[str]) -> None:
    made = flux.own(variant, train=LORA)
    assert set(made.policy.adapted) == {f"transformer.{layer}" for layer in layers}
    assert len(made.policy.parameters) == 2 * len(layers)


@pytest.mark.parametrize("variant", ["dev", "kontext", "flux2", "klein-base"])
def test_diffusers_loads_the_adapters_and_draws_the_same(flux: Flux, tmp_path: Path, variant: str) -> None:
    made = flux.own(variant, *PROMPTS, guidance=3.0, train=LORA)
    pipeline = flux.fresh_pipeline(variant)
    fresh = made.draw(2).latents
    assert relative_difference(fresh, drawn_by(pipeline, made, max_sequence_length=TOKENS[variant]).latents) < 1e-5
    nudge(made)
    ours = made.draw(2).latents
    assert relative_difference(ours, fresh) > 1e-2, "the adapters change nothing that could be compared"
    save_trained(made.policy, tmp_path)
    pipeline.load_lora_weights(tmp_path)
    assert relative_difference(ours, drawn_by(pipeline, made, max_sequence_length=TOKENS[variant]).latents) < 1e-5
    pipeline.fuse_lora()
    assert relative_difference(ours, drawn_by(pipeline, made, max_sequence_length=TOKENS[variant]).latents) < 1e-4


@pytest.mark.parametrize("variant", ["dev", "flux2"])
def test_every_loader_of_adapters_draws_what_was_trained(flux: Flux, tmp_path: Path, variant: str) -> None:
    model = make_config(variant, flux.folder(variant), train=LORA)
    made = flux.own(variant, *PROMPTS, guidance=3.0, train=LORA)
    nudge(made)
    kind = "flux1" if variant == "dev" else "flux2"

    def draw(pipeline: Any) -> torch.Tensor:
        drawn: torch.Tensor = drawn_by(pipeline, made, max_sequence_length=TOKENS[variant]).latents
        return drawn

    check_every_loader(made.policy, model, kind, made.draw(2).latents, lambda: flux.fresh_pipeline(variant), draw, tmp_path)


@pytest.mark.parametrize("variant", ["dev", "flux2"])
def test_comfyui_has_a_name_for_every_layer(flux: Flux, tmp_path: Path, variant: str) -> None:
    """The tests' tables of them agree with diffusers' converters, FLUX.1's of which is for the released width alone."""
    kind = "flux1" if variant == "dev" else "flux2"
    weights = comfyui.linear_weights(flux.pipeline(variant).transformer)
    if kind == "flux1":
        convert = convert_flux_transformer_checkpoint_to_diffusers
        with torch.device("meta"):
            released = comfyui.linear_weights(FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True))
        assert set(released) == set(weights)
        comfyui.check_against_diffusers({name: torch.randn(len(w), 1) for name, w in released.items()}, kind, convert)
    else:
        comfyui.check_against_diffusers(weights, kind, convert_flux2_transformer_checkpoint_to_diffusers)
    model = make_config(variant, flux.folder(variant), train={"lora": {"rank": 2, "targets": list(weights)}})
    made = flux.own(variant, train={"lora": {"rank": 2, "targets": list(weights)}})
    nudge(made)
    comfyui.check_names(made.policy, model, kind, flux.fresh_pipeline(variant).transformer, tmp_path)


@pytest.mark.parametrize(("variant", "kind"), [("dev", FluxTransformer2DModel), ("klein-base", Flux2Transformer2DModel)])
def test_diffusers_loads_the_fully_trained_transformer(flux: Flux, tmp_path: Path, variant: str, kind: Any) -> None:
    made = flux.own(variant, *PROMPTS, guidance=3.0)
    before = made.draw(2).latents
    nudge(made)
    ours = made.draw(2).latents
    assert relative_difference(ours, before) > 1e-2, "training changed nothing that could be compared"
    save_trained(made.policy, tmp_path)
    pipeline = flux.fresh_pipeline(variant)
    pipeline.transformer = kind.from_pretrained(tmp_path / "transformer")
    loaded = pipeline.transformer.state_dict()
    assert {f"transformer.{name}" for name in loaded} == set(made.policy.parameters)
    assert all(torch.equal(loaded[name.removeprefix("transformer.")], w) for name, w in made.policy.parameters.items())
    assert relative_difference(ours, drawn_by(pipeline, made, max_sequence_length=TOKENS[variant]).latents) < 1e-5


@pytest.mark.parametrize("variant", EVERY)
def test_full_training_reaches_every_weight(flux: Flux, variant: str) -> None:
    made = flux.own(variant, *PROMPTS, guidance=3.0)
    start = initial_noise(made, flux.pipeline(variant))
    step = Step(start, torch.full((2,), 0.7), made.conditions, 3.0, ODE())
    velocity = made.policy.evaluate(step).velocity
    target = torch.randn(velocity.shape, generator=torch.Generator().manual_seed(1))
    parameters = made.policy.parameters
    gradients = torch.autograd.grad((velocity - target).square().sum(), list(parameters.values()), allow_unused=True)
    assert {
        name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None or not gradient.any()
    } == set()
