from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from flowfactory.config.component import LoraConfig
from flowfactory.policy import lora
from flowfactory.policy.adapted_linear import AdaptedLinear
from flowfactory.policy.merging import Merging
from flowfactory.policy.quantization import Int8Linear

Make = Callable[..., tuple[AdaptedLinear, Merging]]
IN, OUT = 12, 20


@pytest.fixture
def make() -> Make:
    def made(dtype: torch.dtype = torch.float32, bias: bool = True) -> tuple[AdaptedLinear, Merging]:
        torch.manual_seed(0)
        merging, module = Merging(), nn.Sequential(nn.Linear(IN, OUT, bias=bias).to(dtype))
        lora.add_adapters(module, LoraConfig(rank=3, alpha=7.5), ("0",), 1, merging)
        layer = module[0]
        assert isinstance(layer, AdaptedLinear)
        nn.init.normal_(layer.lora_B[lora.ADAPTER].weight, std=0.1)
        return layer, merging

    return made


def rows(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, count // 2, IN, generator=torch.Generator().manual_seed(3)).to(dtype)


def factors(layer: AdaptedLinear) -> tuple[Tensor, Tensor]:
    return layer.lora_A[lora.ADAPTER].weight, layer.lora_B[lora.ADAPTER].weight


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [4, 64])  # below in * out / (in + out) nothing is added to the weight
def test_forward_and_gradients_are_those_of_the_sum_in_float64(make: Make, count: int, bias: bool) -> None:
    layer, _ = make(bias=bias)
    down, up = factors(layer)
    x, pull = rows(count).requires_grad_(), torch.randn(2, count // 2, OUT, generator=torch.Generator().manual_seed(4))
    found = layer(x)
    gradients = torch.autograd.grad(found, (x, down, up), pull)

    exact = [tensor.detach().double().requires_grad_() for tensor in (x, down, up)]
    added = exact[0] @ exact[1].T @ exact[2].T * 2.5
    expected = exact[0] @ layer.base_layer.weight.double().T + added + (layer.base_layer.bias.double() if bias else 0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, exact, pull.double()), strict=True):
        assert float((mine.double() - theirs).norm() / theirs.norm()) < 1e-6


def test_with_a_gradient_and_without_the_numbers_are_the_same(make: Make) -> None:
    layer, merging = make()
    x = rows(64)
    differentiable = layer(x)
    assert differentiable.requires_grad
    for merging.allowed in (False, True):
        with torch.no_grad():
            assert torch.equal(layer(x), differentiable)


def test_an_adapter_that_adds_nothing_changes_no_bit(make: Make) -> None:
    layer, _ = make()
    nn.init.zeros_(factors(layer)[1])
    assert torch.equal(layer(rows(64)), layer.base_layer(rows(64)))


def test_only_what_wants_a_gradient_gets_one(make: Make) -> None:
    layer, _ = make()
    down, up = factors(layer)
    layer(rows(64)).sum().backward()
    assert down.grad is not None
    assert up.grad is not None
    assert layer.base_layer.weight.grad is None
    down.requires_grad_(False)
    up.requires_grad_(False)
    x = rows(64).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).sum(), (x,))
    merged = layer.base_layer.weight + 2.5 * up @ down
    torch.testing.assert_close(gradient, merged.sum(0).expand_as(x))


def test_in_bf16_the_sum_is_rounded_only_where_it_may_be_and_the_weight_is_not_written_to(make: Make) -> None:
    layer, merging = make(torch.bfloat16)
    before = layer.base_layer.weight.clone()
    x = rows(64, torch.bfloat16)
    down, up = factors(layer)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        exact = PeftLinear.forward(layer, x)
        assert torch.equal(layer(x), exact)
        merging.allowed = True
        merged = layer(x)
        with torch.enable_grad():
            assert torch.equal(layer(x), exact)
    assert not torch.equal(merged, exact)
    rounded = (before.float() + 2.5 * up.detach() @ down.detach()).bfloat16()
    expected = nn.functional.linear(x.float(), rounded.float(), layer.base_layer.bias.float())
    # addmm may round the factors and the product too
    assert float((merged.float() - expected).norm() / expected.norm()) < 1e-2
    assert torch.equal(layer.base_layer.weight, before)
    with pytest.raises(RuntimeError):
        layer(torch.zeros(64, IN + 1))
    assert torch.equal(layer.base_layer.weight, before)


def test_disabled_adapters_add_nothing(make: Make) -> None:
    layer, merging = make()
    merging.allowed = True
    with lora.adapters_disabled([layer]), torch.no_grad():
        assert torch.equal(layer(rows(64)), layer.base_layer(rows(64)))
    assert all(factor.requires_grad for factor in factors(layer))


def test_over_packed_weights_and_other_kinds_of_layers_peft_computes() -> None:
    plain = nn.Linear(16, 16)
    module = nn.Sequential(Int8Linear(plain, torch.float32, torch.device("cpu")), nn.Conv2d(3, 4, 2), nn.Linear(16, 16))
    lora.add_adapters(module, LoraConfig(rank=2), ("0", "1", "2"), seed=0)
    assert [type(layer) is AdaptedLinear for layer in module] == [False, False, True]
    for parameter in module.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    x = torch.randn(64, 16)
    down, up = factors(module[0])  # type: ignore[arg-type]
    added = x @ down.T @ up.T * module[0].scaling[lora.ADAPTER]
    torch.testing.assert_close(module[0](x), module[0].base_layer(x) + added)


def test_a_copy_of_a_module_is_told_when_it_may_merge(make: Make) -> None:
    layer, merging = make(torch.bfloat16)
    copied = copy.deepcopy(nn.Sequential(layer))[0]
    x = rows(64, torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        apart = copied(x)
        merging.allowed = True
        assert not torch.equal(copied(x), apart)
        assert torch.equal(copied(x), layer(x))
    assert copied.lora_A[lora.ADAPTER].weight is not layer.lora_A[lora.ADAPTER].weight


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # of torch's own jvp
@pytest.mark.parametrize("count", [4, 64])
def test_transforms_of_functions_go_through_it(make: Make, count: int) -> None:
    layer, _ = make()
    x, tangent = rows(count), torch.randn(2, count // 2, IN, generator=torch.Generator().manual_seed(5))
    weight = layer.base_layer.weight.double() + 2.5 * factors(layer)[1].double() @ factors(layer)[0].double()
    bias = layer.base_layer.bias.double()

    def squared(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    learned = {name: parameter.detach() for name, parameter in layer.named_parameters() if parameter.requires_grad}
    leaves = {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}
    expected = torch.autograd.grad(layer(x).square().sum(), list(leaves.values()))
    found = torch.func.grad(squared, argnums=1)(x, learned)
    for name, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)
    exact = x.double() @ weight.T + bias
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(layer)(x).double(), exact, rtol=1e-5, atol=1e-5)
    _, moved = torch.func.jvp(layer, (x,), (tangent,))
    torch.testing.assert_close(moved.double(), tangent.double() @ weight.T, rtol=1e-5, atol=1e-5)
