"""A transformer in bf16 throughout, as its own pipeline runs it: no operation chooses float32, and nothing is cast in between.

Under autocast norms and softmax answer in float32, and what they answer is cast again for the next layer. Adapters stay
float32, for steps smaller than bf16 can tell, and are rounded where they are used; of an embedding, what its adapter adds is
rounded together with what it is added to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map

from flowfactory.policy.blocks import replace_forward


def compute_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Have ``module``, whose frozen weights are in ``dtype``, take what it is given and use its adapters in ``dtype``."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    def rounded(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def round_given(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # times and positions would lose digits; what they become, the class rounds itself
        given = {
            key: value if key == "timestep" or key.endswith("_ids") else tree_map(rounded, value)
            for key, value in kwargs.items()
        }
        return tree_map(rounded, args), given

    module.register_forward_pre_hook(round_given, with_kwargs=True)
    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            for name in layer.adapter_layer_names:
                for adapter in getattr(layer, name).values():
                    if isinstance(adapter, (nn.Linear, _ConvNd)):
                        replace_forward(adapter, _in_the_dtype_of_its_input)


def _in_the_dtype_of_its_input(layer: nn.Linear | _ConvNd, given: Tensor) -> Tensor:
    weight, bias = layer.weight.to(given.dtype), None if layer.bias is None else layer.bias.to(given.dtype)
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(given, weight, bias)
    convolved: Tensor = layer._conv_forward(given, weight, bias)
    return convolved
