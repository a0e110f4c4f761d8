"""A linear layer with a low-rank adapter, whose forward costs little more than that of the layer alone.

x (W + s B A)ᵀ rather than x Wᵀ + s (x Aᵀ) Bᵀ: with as many rows as a picture has tokens it is far cheaper to add the adapter to
the weight, once a forward and for as long as it takes, than to each row. The weight itself is never written to, so there is
nothing to restore, and no more memory is taken than the sum of one layer.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.nn.functional import linear

from flowfactory.policy.merging import Merging, merge, pays


class AdaptedLinear(PeftLinear):  # type: ignore[misc]
    """peft's layer, with its names and its state, and another way to compute the same.

    In float32 forward and gradients are those of peft's own forward up to rounding, and with a gradient and without they are
    the same to the bit. In another dtype, or under autocast, the sum of weight and adapter loses what the dtype has no room
    for, so it is made where ``merging`` allows it and nothing has a gradient.
    """

    merging: Merging

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        stored = type(self.base_layer) is not nn.Linear  # in fewer bits, while it draws
        # vmap and its like take no function whose backward is written out
        transformed = torch._C._are_functorch_transforms_active()
        others = args or kwargs or stored or transformed or self.disable_adapters or self.merged
        if others or not pays(x, self.in_features, self.out_features):
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        (name,) = self.active_adapters
        weight, bias, scale = self.base_layer.weight, self.base_layer.bias, self.scaling[name]
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        kinds = {tensor.dtype for tensor in (x, weight, down, up)}
        if kinds == {torch.float32} and not torch.is_autocast_enabled(x.device.type):
            exact: Tensor = _Adapted.apply(x, weight, bias, down, up, scale)  # type: ignore[no-untyped-call]
            return exact
        if self.merging.allowed and not torch.is_grad_enabled():
            return linear(x, merge(weight, down.to(weight.dtype), up.to(weight.dtype), scale), bias)
        rounded: Tensor = super().forward(x)
        return rounded


def adapt_linear_layers(module: nn.Module, merging: Merging) -> None:
    """Have the layers of ``module`` that peft put adapters on compute as :class:`AdaptedLinear` does.

    Layers of another kind, or whose weights are stored in fewer bits, stay as they are.
    """
    for layer in module.modules():
        if type(layer) is PeftLinear and type(layer.base_layer) is nn.Linear:
            adapted: Any = layer
            adapted.__class__, adapted.merging = AdaptedLinear, merging


class _Adapted(torch.autograd.Function):
    """``linear(x, W + s B A, bias)``; weight and bias are frozen.

    Of the sum nothing is kept for the backward, which makes it again. dB = s dyᵀ (x Aᵀ) and dA = s (dy B)ᵀ x, so that
    the gradient of the weight, as large as the weight, is not needed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight, down, up)
        ctx.scale = scale
        return linear(x, merge(weight, down, up, scale), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up = ctx.saved_tensors
        wants_x, _, _, wants_down, wants_up, _ = ctx.needs_input_grad
        rows, inputs = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        to_x = gradient @ merge(weight, down, up, ctx.scale) if wants_x else None
        # long thin products [rank, rows] have the rows last, which on processors is several times as fast
        to_down = (up.t().contiguous() @ rows.t()) @ inputs * ctx.scale if wants_down else None
        to_up = ((down @ inputs.t()) @ rows * ctx.scale).t() if wants_up else None
        return to_x, None, None, to_down, to_up, None
