"""What ranks that share a forward exchange, with gradients: all tokens, or all tokens of some heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowfactory.distributed.context import Context
from flowfactory.errors import UserError


def gather_tokens(tensor: Tensor, dim: int, context: Context) -> Tensor:
    """All of what each rank has a part of, joined along ``dim``.

    Each rank computes the whole loss of it, of which its own part alone goes back: the gradients of weights that some tokens
    pass through are those of these tokens, and are to be summed over the ranks.
    """
    found: Tensor = _Gather.apply(tensor, context)  # type: ignore[no-untyped-call]
    return torch.cat(found.unbind(), dim)


def tokens_to_heads(tensor: Tensor, context: Context) -> Tensor:
    """[B, tokens, heads / n, D]: all tokens with this rank's heads, of its part of the tokens [B, tokens / n, heads, D].

    Ulysses, arXiv:2309.14509. UserError: the heads cannot be divided evenly.
    """
    batch, tokens, heads, size = tensor.shape
    if heads % context.count:
        raise UserError(f"distributed.context {context.count} does not divide the {heads} heads of the transformer")
    parts = tensor.view(batch, tokens, context.count, heads // context.count, size).permute(2, 0, 1, 3, 4)
    found: Tensor = _Swap.apply(parts, context)  # type: ignore[no-untyped-call]
    return found.permute(1, 0, 2, 3, 4).reshape(batch, context.count * tokens, -1, size)


def heads_to_tokens(tensor: Tensor, context: Context) -> Tensor:
    """[B, tokens / n, heads, D] of [B, tokens, heads / n, D]: what :func:`tokens_to_heads` did, undone."""
    batch, tokens, heads, size = tensor.shape
    parts = tensor.reshape(batch, context.count, tokens // context.count, heads, size).transpose(0, 1)
    found: Tensor = _Swap.apply(parts, context)  # type: ignore[no-untyped-call]
    return found.permute(1, 2, 0, 3, 4).reshape(batch, tokens // context.count, -1, size)


class _Swap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, context: Context) -> Tensor:
        ctx.context = context
        return context.swap(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.context.swap(gradients[0]), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, context: Context) -> Tensor:
        ctx.context = context
        return context.collect(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.context.rank], None
