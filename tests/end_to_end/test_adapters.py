"""Adapters added to the weights in the forward, against peft's own forward, on whole transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_wan
import torch
from families import LORA, nudge, open_bench, relative_difference
from family_cases import CASES
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from flowfactory.config.component import LoraConfig
from flowfactory.flow.dynamics import FlowSDEConfig
from flowfactory.policy import lora
from flowfactory.policy.adapted_linear import AdaptedLinear
from flowfactory.testing import Bench
from flowfactory.testing.tiny_checkpoints import sd3_transformer
from flowfactory_flux.flux1 import Flux1Config
from flowfactory_wan.wan_t2v import WanT2VConfig

PROMPTS = ("a cat", "a photo of a red circle")


@contextmanager
def as_peft_computes(*modules: nn.Module) -> Iterator[int]:
    """Within it every layer is peft's own; how many there are."""
    layers = [layer for module in modules for layer in module.modules() if type(layer) is AdaptedLinear]
    for layer in layers:
        layer.__class__ = PeftLinear
    yield len(layers)
    for layer in layers:
        layer.__class__ = AdaptedLinear


@pytest.fixture
def make(checkpoints: Callable[[str], Path], cache: Path, tmp_path: Path) -> Callable[..., Bench]:
    def made(key: str, precision: torch.dtype = torch.float32) -> Bench:
        config: Any
        if key == "flux1":
            case = CASES[key]
            config = Flux1Config.model_validate({"path": str(checkpoints(key)), "train": LORA, **case.options})
        else:
            case = CASES["wan-t2v"]
            path = tiny_wan.text_to_video(tmp_path / "checkpoint", "a14b")
            config = WanT2VConfig.model_validate({"path": str(path), "train": LORA})
        found = open_bench(config, cache, PROMPTS, case.size, guidance=case.guidance, precision=precision)
        nudge(found)
        return found

    return made


@pytest.mark.parametrize(("key", "transformers"), [("flux1", 1), ("wan a14b", 2)])
def test_what_is_drawn_is_what_peft_draws(make: Callable[..., Bench], key: str, transformers: int) -> None:
    made = make(key)
    assert len(made.policy.modules) == transformers
    seen = dict.fromkeys(made.policy.modules, 0)
    for name, module in made.policy.modules.items():
        module.register_forward_hook(lambda *_, name=name: seen.update({name: seen[name] + 1}))
    ours = made.draw(2).latents
    assert all(seen.values()), "each transformer has a part of the steps"
    with as_peft_computes(*made.policy.modules.values()) as layers:
        assert layers == len(made.policy.adapted)
        theirs = made.draw(2).latents
    assert not torch.equal(ours, theirs)
    assert relative_difference(ours, theirs) < 1e-5
    for module in made.policy.modules.values():
        with lora.adapters_disabled([module]):
            pass
    made.policy.keep_reference()
    with made.policy.using("reference"):
        assert relative_difference(made.draw(2).latents, theirs) > 1e-3, "the adapters add nothing"


def test_sd3_computes_and_learns_what_peft_does() -> None:
    torch.manual_seed(0)
    module = sd3_transformer(8, 4, 3, (2, 8), 16, 16).eval()
    lora.add_adapters(module, LoraConfig(rank=3), ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj"), seed=1)
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for weight in weights:
            weight.add_(torch.randn_like(weight), alpha=0.1)
    given = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "pooled_projections": torch.randn(2, 16),
        "timestep": torch.tensor([900.0, 100.0]),
    }

    def learned() -> tuple[Tensor, Tensor]:
        result = module(**given, return_dict=False)[0]
        gradients = torch.autograd.grad(result.square().sum(), weights, allow_unused=True)
        return result.detach(), torch.cat([each.flatten() for each in gradients if each is not None])

    ours = learned()
    with as_peft_computes(module) as layers:
        assert layers
        theirs = learned()
    for mine, other in zip(ours, theirs, strict=True):
        assert relative_difference(mine, other) < 1e-5


def test_in_bf16_recorded_steps_are_what_training_computes_and_the_others_are_merged(make: Callable[..., Bench]) -> None:
    made = make("flux1", torch.bfloat16)
    dynamics = FlowSDEConfig().build("dynamics")
    plan = replace(made.plan, dynamics=dynamics, stochastic=frozenset({1}), recorded=frozenset({1}))
    (transformer,) = made.policy.modules.values()
    frozen = {name: value.clone() for name, value in transformer.named_parameters() if not value.requires_grad}
    merged: list[bool] = []
    transformer.register_forward_hook(lambda *_: merged.append(made.policy._merging.allowed))
    drawn = made.sampler.draw(made.conditions, plan, 2)
    assert merged == [True, False, True, True]
    (step,) = drawn.steps
    replayed = made.policy.evaluate(step)
    assert step.log_prob is not None
    assert replayed.log_prob is not None
    assert torch.equal(replayed.log_prob, step.log_prob)

    exact = replace(made, plan=replace(plan, recorded=frozenset(range(4)), stochastic=frozenset(range(3))))
    assert merged[-1] is False, "what training evaluates is not"
    made.sampler._merges = False
    never = made.sampler.draw(made.conditions, plan, 2)
    assert merged[-4:] == [False] * 4
    assert not torch.equal(never.latents, drawn.latents)
    assert relative_difference(drawn.latents, never.latents) < 0.05
    made.sampler._merges = True
    exact.draw(2)
    assert merged[-4:] == [False] * 4
    assert all(torch.equal(value, frozen[name]) for name, value in transformer.named_parameters() if name in frozen)
