"""What a transformer's class keeps in float32 is computed so, in a run of bf16 too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from flowfactory.policy.float32_islands import find_islands, is_island, keep_in_float32


class Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        result: Tensor = self.linear(x) * scale
        return result


class Whole(nn.Module):
    """As a class of diffusers that keeps what is called ``time`` and ``norm``."""

    _keep_in_fp32_modules = ("time", "norm", "table")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time, self.other, self.norm = Embedder(), Embedder(), nn.LayerNorm(4)
        self.table = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.time(x, scale=2.0)
        return result


def in_bf16(call: Callable[[], Any]) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return call()


def test_islands_are_the_outermost_modules_and_the_parameters_that_the_class_names() -> None:
    module = Whole()
    assert [name for name, _ in find_islands(module)] == ["time", "norm"]
    assert [name for name, _ in module.named_parameters() if is_island(module, name)] == [
        "table", "time.linear.weight", "time.linear.bias", "norm.weight", "norm.bias"
    ]  # fmt: skip
    assert not is_island(nn.Linear(2, 2), "weight")


def test_an_island_is_computed_in_float32_under_autocast_and_nothing_else_is() -> None:
    module, x = Whole(), torch.randn(3, 4)
    exact = module(x)
    assert not torch.equal(in_bf16(lambda: module(x)).float(), exact)
    assert keep_in_float32(module) == ["time"]  # a norm is float32 under autocast anyway
    assert torch.equal(in_bf16(lambda: module(x)), exact)
    assert in_bf16(lambda: module.other(x)).dtype == torch.bfloat16
    assert in_bf16(lambda: module.time(x.bfloat16())).dtype == torch.float32


def test_a_copy_computes_with_its_own_weights() -> None:
    module = Whole()
    keep_in_float32(module)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.time.linear.weight.zero_()
        other.time.linear.bias.zero_()
    x = torch.randn(3, 4)
    assert not other(x).any()
    assert module(x).any()


def test_gradients_reach_an_island_in_float32() -> None:
    module = Whole()
    keep_in_float32(module)
    in_bf16(lambda: module(torch.randn(3, 4))).sum().backward()
    weight = module.time.linear.weight
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("kept", [False, True])
def test_the_times_of_wan_are_embedded_as_its_pipeline_embeds_them(kept: bool) -> None:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 8}
    module = WanTransformer3DModel(**sizes, freq_dim=16, ffn_dim=16, num_layers=1).eval()
    embedder = module.condition_embedder.time_embedder
    x = torch.randn(2, 16)
    exact = embedder(x)  # with weights in float32, and no autocast
    if kept:
        assert keep_in_float32(module) == ["condition_embedder.time_embedder"]
    assert torch.equal(in_bf16(lambda: embedder(x)).float(), exact) == kept
