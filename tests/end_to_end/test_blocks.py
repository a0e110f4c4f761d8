"""What is done to the blocks of real transformers leaves what they learn as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from families import nudge
from family_cases import CASES, prompts
from safetensors.torch import load_file
from saved import save_trained
from torch import Tensor, nn

from flowfactory import Evaluation, Prompt, Step, Trainable, hookimpl
from flowfactory.config.component_slots import config_class
from flowfactory.discovery.discover import discover
from flowfactory.policy import blocks, quantization
from flowfactory.testing import Bench, bench
from flowfactory.testing.tiny_checkpoints import sd3_transformer

MODELS = dict.fromkeys(("chroma", "flux1", "flux2", "krea2", "lumina2", "z-image"), 4) | dict.fromkeys(
    ("hunyuan-video-1.5", "qwen-image", "qwen-image-2.1", "sana", "wan-t2v"), 2
)
"""How many blocks each has."""
BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
Change = Callable[[nn.Module, tuple[str, ...]], object]
Made = Callable[..., Bench]


class Changed:
    """Wraps ``load``: the transformers are changed before adapters are put on."""

    def __init__(self, change: Change) -> None:
        self._change = change

    @hookimpl(wrapper=True)
    def load(self) -> Any:
        trainable: Trainable = yield
        for module in trainable.modules.values():
            self._change(module, trainable.blocks)
        return trainable


@pytest.fixture
def made(checkpoints: Callable[[str], Path], cache: Path, tmp_path: Path) -> Made:
    """``made(key, change, precision)``: a tiny checkpoint with LoRA, and two samples a prompt to draw."""

    def make(key: str, change: Change = lambda module, names: None, precision: torch.dtype = FLOAT32) -> Bench:
        case = CASES[key]
        kind = config_class(discover([]).find("model", case.name))
        config = kind.model_validate(
            {"path": str(checkpoints(key)), "train": {"lora": {"rank": 3, "alpha": 6}}, **case.options}
        )
        told = [Prompt(json.loads(line)["prompt"]) for line in prompts(case, tmp_path).read_text().splitlines()]
        others = {"changed": Changed(change)}
        return bench(config, cache, told, case.size, 2, case.guidance, 2, others=others, precision=precision)

    return make


def learned(made: Bench, step: Step) -> tuple[Evaluation, dict[str, Tensor], int]:
    """The forward, the gradients of its log-densities, and the bytes it saved for them."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        evaluation = made.policy.evaluate(step)
    assert evaluation.log_prob is not None
    parameters = made.policy.parameters
    gradients = torch.autograd.grad(evaluation.log_prob.sum(), list(parameters.values()))
    return evaluation, dict(zip(parameters, gradients, strict=True)), sum(saved.values())


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def joined(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


@pytest.mark.parametrize("key", MODELS)
def test_checkpointing_saves_bytes_and_changes_no_bit(made: Made, key: str) -> None:
    counts: list[int] = []
    plain = made(key, lambda module, names: counts.append(len(blocks.find_blocks(module, names))))
    assert counts == [MODELS[key]]
    nudge(plain)
    step = plain.draw(4).steps[0]
    expected, gradients, everything = learned(plain, step)
    sizes = []
    for setting in ("every-2", "blocks"):
        saving = made(key, lambda module, names, setting=setting: blocks.checkpoint_blocks(module, names, setting))
        nudge(saving)
        evaluation, found, size = learned(saving, step)
        assert torch.equal(evaluation.velocity, expected.velocity)
        assert all(torch.equal(found[name], gradients[name]) for name in gradients)
        sizes.append(size)
    assert sizes[1] < 0.2 * everything
    assert sizes[1] < sizes[0] < 0.8 * everything


def test_sd3_too_with_all_its_weights() -> None:
    torch.manual_seed(0)
    module = sd3_transformer(8, 4, 3, (2, 8), 16, 16).eval()
    given = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "pooled_projections": torch.randn(2, 16),
        "timestep": torch.tensor([900.0, 100.0]),
    }

    def gradients() -> list[Tensor | None]:
        result = module(**given, return_dict=False)[0]
        return list(torch.autograd.grad(result.square().sum(), list(module.parameters()), allow_unused=True))

    before = gradients()
    assert len(blocks.find_blocks(module)) == 3, "what diffusers itself calls its blocks"
    blocks.checkpoint_blocks(module, (), "blocks")
    for ours, theirs in zip(gradients(), before, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or theirs is None or torch.equal(ours, theirs)


def unpacked(layer: Any) -> Tensor:
    if isinstance(layer, quantization.Int8Linear):
        return layer.weight.detach().view(torch.int8).double() * layer.scale.double()
    from bitsandbytes.functional import dequantize_4bit

    found: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state).double()
    return found


@pytest.mark.parametrize(("kind", "least", "most"), [("nf4", 0.05, 0.12), ("int8", 0.003, 0.009)])
@pytest.mark.parametrize("key", MODELS)
def test_over_stored_weights_adapters_learn_as_over_the_same_weights_unstored(
    made: Made, key: str, kind: str, least: float, most: float
) -> None:
    layers: list[str] = []
    stored = made(key, lambda module, names: layers.extend(quantization.quantize_blocks(module, names, kind, FLOAT32)))
    plain = made(key)
    assert all(torch.equal(weight, stored.policy.parameters[name]) for name, weight in plain.policy.parameters.items())
    assert len(layers) >= 6 * MODELS[key]
    ours, theirs = (each.policy.modules["transformer"] for each in (stored, plain))
    for name in layers:
        layer, exact = (getattr(found := module.get_submodule(name), "base_layer", found) for module in (ours, theirs))
        weight = unpacked(layer)
        assert least < error(weight, exact.weight) < most
        exact.weight.data.copy_(weight)
    for each in (stored, plain):
        nudge(each)
    step = plain.draw(4).steps[0]
    (expected, gradients, _), (evaluation, found, _) = learned(plain, step), learned(stored, step)
    assert error(evaluation.velocity.detach(), expected.velocity.detach()) < 1e-5
    assert error(joined(found), joined(gradients)) < 1e-4
    with torch.no_grad():
        replayed = stored.policy.evaluate(step)
    assert torch.equal(replayed.velocity, evaluation.velocity)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_in_bf16_stored_weights_draw_and_learn(made: Made, kind: str) -> None:
    stored = made("flux1", lambda module, names: quantization.quantize_blocks(module, names, kind, BFLOAT16), BFLOAT16)
    nudge(stored)
    step = stored.draw(4).steps[0]
    evaluation, gradients, _ = learned(stored, step)
    assert step.log_prob is not None
    assert evaluation.log_prob is not None
    assert float((evaluation.log_prob.detach() - step.log_prob).abs().max()) < 1e-5
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_of_stored_weights_load_into_the_plain_pipeline(
    made: Made, checkpoints: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    stored = made("flux1", lambda module, names: quantization.quantize_blocks(module, names, kind, FLOAT32))
    nudge(stored)
    save_trained(stored.policy, tmp_path)
    written = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert len(written) == len(stored.policy.parameters)
    assert all("lora_" in name for name in written)
    pipeline = FluxPipeline.from_pretrained(checkpoints("flux1"))
    pipeline.load_lora_weights(tmp_path)
    loaded = {
        name.replace(".default_0.", ".default."): p for name, p in pipeline.transformer.named_parameters() if "lora_" in name
    }
    assert {f"transformer.{name}" for name in loaded} == set(stored.policy.parameters)
    for name, weight in stored.policy.parameters.items():
        scale = 6 / 3 if "lora_B" in name else 1  # alpha over rank, which is multiplied in
        assert torch.equal(scale * weight, loaded[name.removeprefix("transformer.")]), name
