"""Frozen linear layers stored in 4 bits (nf4) or 8 (int8, fp8)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from flowfactory import stored_weights
from flowfactory.config.bitsandbytes import quantization_unavailable
from flowfactory.errors import UserError
from flowfactory.policy.autocast import to_autocast
from flowfactory.policy.blocks import require_blocks


def quantize_blocks(
    module: nn.Module, names: Sequence[str], kind: str, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> list[str]:
    """The names of the linear layers in the blocks, which now hold their weights in 4 bits (``nf4``) or 8 (``int8``).

    They compute in ``dtype``, and their weights are stored in elements of it, which ``fully_shard`` does not cast. The
    arithmetic is done on ``device``; the layers stay where they are, and train no more. nf4: QLoRA, arXiv:2305.14314. int8: one
    scale a row. UserError: there are no blocks, or no library for it.
    """
    if lacking := quantization_unavailable(kind):
        raise UserError(lacking)
    found = find_layers(module, names, "model.quantize")
    for name, layer in found.items():
        stored_weights.place(layer)
        module.set_submodule(name, store_layer(layer, kind, dtype, torch.device(device)))
    return list(found)


def find_layers(module: nn.Module, names: Sequence[str], key: str) -> dict[str, nn.Linear]:
    """The linear layers in the blocks that can be stored in few bits, by name; ``key`` asks for it.

    Not those of adapters, whose small steps would be lost. UserError: there are no blocks.
    """
    blocks = {id(block) for block in require_blocks(module, names, key)}
    found = {}
    for name, block in module.named_modules():
        if id(block) not in blocks:
            continue
        for inner, layer in block.named_modules():
            # 8 weights of 4 bits, or 4 of 8, are an element of float32; rows end with an element
            if type(layer) is nn.Linear and layer.in_features % 8 == 0 and "lora_" not in inner:
                found[f"{name}.{inner}"] = layer
    return found


def store_layer(layer: nn.Linear, kind: str, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    """A layer with the weight of ``layer`` stored as ``kind``, ``nf4``, ``int8`` or ``fp8``, which computes in ``dtype``."""
    stored = {"nf4": _nf4, "int8": Int8Linear, "fp8": Fp8Linear}[kind]
    made: nn.Linear = stored(layer, dtype, device).train(layer.training)
    return made


def _nf4(layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    library: Any = import_module("bitsandbytes.nn")
    home = layer.weight.device
    made: nn.Linear = library.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=dtype,
        quant_type="nf4",
        quant_storage=dtype,
        device="meta",
    )
    made.weight = library.Params4bit(layer.weight.detach(), quant_type="nf4", quant_storage=dtype, module=made)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
    # on such processors it would repack the weights in eval mode for kernels that have no gradient
    made.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    made.register_forward_pre_hook(_as_autocast)
    return made.to(device).to(home)


def _as_autocast(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a linear layer does under autocast; bitsandbytes' answers in the dtype of its input, float32 after a norm."""
    return (to_autocast(given[0]),)


class _RowScaled(nn.Linear):
    """A frozen linear layer whose ``weight`` is stored in 8 bits, each row with a ``scale`` of its own."""

    def __init__(self, layer: nn.Linear, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        home = layer.weight.device
        self.weight = nn.Parameter(weight.to(home), requires_grad=False)
        self.scale = nn.Parameter(scale.to(home), requires_grad=False)
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)

    def _bias_of(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.bias is None else self.bias.to(dtype)


class Int8Linear(_RowScaled):
    """A frozen linear layer whose weight is 8 bits, each row with a scale of its own.

    weight: [out, in / size of ``dtype``], the bits of int8 [out, in]; scale [out, 1]. Unlike bitsandbytes' Linear8bitLt it
    rounds no activations, keeps none for the backward, and can be sharded.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> None:
        weight = layer.weight.detach().to(device, torch.float32)
        # the scale is rounded first, so that its rounding is no error of the weights
        scale = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(1e-30).to(dtype)
        rounded = (weight / scale).round().clamp(-127, 127).to(torch.int8)
        super().__init__(layer, rounded.view(dtype), scale, dtype)

    def forward(self, input: Tensor) -> Tensor:
        given = to_autocast(input)
        result: Tensor = _Int8.apply(given, self.weight, self.scale, self._bias_of(given.dtype))  # type: ignore[no-untyped-call]
        return result


class _Int8(torch.autograd.Function):
    """``linear`` that keeps the 8 bits for the backward rather than the weight."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, stored: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(stored, scale)
        return nn.functional.linear(input, _weight(stored, scale, input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        stored, scale = ctx.saved_tensors
        return gradient @ _weight(stored, scale, gradient.dtype), None, None, None


def _weight(stored: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """[out, in] of what :class:`Int8Linear` stores."""
    return stored.view(torch.int8).to(dtype) * scale.to(dtype)


LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Fp8Linear(_RowScaled):
    """A frozen linear layer to draw with, whose weight is float8_e4m3fn, each row with a scale of its own; no gradients.

    weight [out, in]; scale [out, 1], float32. Where the device multiplies such numbers itself, what comes in is rounded to them
    too, each row with a scale; else the weight is brought back first.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layer, *round_rows(layer.weight.detach().to(device, torch.float32)), dtype)

    def forward(self, input: Tensor) -> Tensor:
        given, kind = to_autocast(input), input.device.type
        dtype, bias = given.dtype, self._bias_of(given.dtype)
        capability = torch.cuda.get_device_capability(input.device) if kind == "cuda" else None
        if multiplies_fp8(kind, capability, dtype, self.in_features, self.out_features):
            return multiply_rounded(given, self.weight, self.scale, bias)
        return nn.functional.linear(given, (self.weight.float() * self.scale).to(dtype), bias)


def multiplies_fp8(kind: str, capability: tuple[int, int] | None, dtype: torch.dtype, inputs: int, outputs: int) -> bool:
    """Whether a device has products of float8 with a scale a row: CUDA from Hopper (9.0) on, for bf16 and multiples of 16."""
    able = kind == "cuda" and capability is not None and capability >= (9, 0)
    return able and dtype == torch.bfloat16 and inputs % 16 == 0 and outputs % 16 == 0


def round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[n, m] in float8_e4m3fn, and the scale [n, 1], float32, that each row was divided by."""
    scale = (rows.abs().amax(1, keepdim=True).float() / LARGEST).clamp_min(1e-30)
    return (rows / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def multiply_rounded(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """``linear`` [..., out] of a float8 weight [out, in] with scale [out, 1]; rows of ``input`` [..., in] are rounded too."""
    rounded, own = round_rows(input.reshape(-1, input.shape[-1]))
    found = torch._scaled_mm(rounded, weight.t(), scale_a=own, scale_b=scale.t(), out_dtype=input.dtype)
    found = found.reshape(*input.shape[:-1], len(weight))
    return found if bias is None else found + bias
