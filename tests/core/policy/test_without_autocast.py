from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowfactory.config.component import LoraConfig
from flowfactory.policy import lora
from flowfactory.policy.without_autocast import compute_in

LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Linear(4, 6), torch.ones(2, 3, 4)),
    "convolution in one dimension": (lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), torch.ones(2, 4, 5)),
    "convolution in two": (lambda: nn.Conv2d(4, 6, 3, stride=2), torch.ones(2, 4, 5, 5)),
    "convolution in three": (lambda: nn.Conv3d(4, 6, (1, 2, 2), stride=(1, 2, 2)), torch.ones(2, 4, 3, 4, 4)),
    "embedding": (lambda: nn.Embedding(7, 6), torch.tensor([[0, 3], [6, 3]])),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_adapters_of_every_kind_of_layer_compute_in_the_dtype_and_learn(kind: str) -> None:
    torch.manual_seed(0)
    make, like = LAYERS[kind]
    x = torch.randn_like(like) if like.is_floating_point() else like
    module = nn.Sequential(make())
    lora.add_adapters(module, LoraConfig(rank=2, alpha=3.0), ("0",), 0)
    trains = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trains:
        nn.init.normal_(parameter, std=0.3)
    exact = copy.deepcopy(module)(x).detach()
    for parameter in module.parameters():
        parameter.data = parameter.data if parameter.requires_grad else parameter.data.bfloat16()
    compute_in(module, torch.bfloat16)
    found = module(x)
    assert found.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in trains} == {torch.float32}
    assert float((found.detach().float() - exact).norm() / exact.norm()) < 0.02
    assert all(bool(gradient.any()) for gradient in torch.autograd.grad(found.float().square().sum(), trains))
