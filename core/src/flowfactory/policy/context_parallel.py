"""A transformer of diffusers whose tokens are divided over ranks: what its plan splits, gathers and attends to together.

The plan and the way to the attention are diffusers' own. Its autograd of the attention is not used: it runs the attention again
in the backward, outside autocast, where queries and values may then have different dtypes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.context_parallel import ContextParallelSplitHook, _get_submodule_by_name
from diffusers.models._modeling_parallel import ContextParallelConfig, ContextParallelOutput, ParallelConfig
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor, nn

from flowfactory.distributed.context import Context
from flowfactory.distributed.context_exchange import gather_tokens, heads_to_tokens, tokens_to_heads
from flowfactory.errors import UserError
from flowfactory.policy.autocast import to_autocast

Attention = Callable[..., Tensor]


def divide_tokens(module: nn.Module, context: Context) -> None:
    """Have each forward of ``module`` compute this rank's part of the tokens, and return all of them on every rank.

    After adapters were added and blocks checkpointed, before anything is sharded. UserError: it has no plan for that, or its
    attention cannot be shared.
    """
    plan = getattr(module, "_cp_plan", None)
    if not plan:
        raise UserError(f"distributed.context: {type(module).__name__} has no plan to divide its tokens; set it to 1")
    shared = _Shared(context)
    for part in module.modules():
        processor = getattr(part, "processor", None)
        if hasattr(processor, "_parallel_config"):
            _share(getattr(processor, "_attention_backend", None))
            processor._parallel_config = shared  # type: ignore[union-attr]
    for name, planned in plan.items():
        hook = _Gather(planned, context) if isinstance(planned, ContextParallelOutput) else _Split(planned, context)
        found = _get_submodule_by_name(module, name)
        for part in found if isinstance(found, list) else [found]:
            HookRegistry.check_if_exists_or_initialize(part).register_hook(hook.copy(), f"tokens of {name!r}")


class _Split(ContextParallelSplitHook):  # type: ignore[misc]
    """Inputs, or outputs, as the part of this rank."""

    def __init__(self, planned: Any, context: Context) -> None:
        super().__init__(planned, None)
        self._planned, self._context = planned, context

    def copy(self) -> _Split:
        """For another module."""
        return _Split(self._planned, self._context)

    def _prepare_cp_input(self, x: Tensor, cp_input: Any) -> Tensor:
        # a time a sample, where the plan is for a time a token
        return x if x.dim() != cp_input.expected_dims else self._context.own_part(x, cp_input.split_dim)


class _Gather(ModelHook):  # type: ignore[misc]
    """The output of all ranks."""

    def __init__(self, planned: ContextParallelOutput, context: Context) -> None:
        super().__init__()
        self._planned, self._context = planned, context

    def copy(self) -> _Gather:
        """For another module."""
        return _Gather(self._planned, self._context)

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return gather_tokens(output, self._planned.gather_dim, self._context)


class _Shared(ParallelConfig):  # type: ignore[misc]
    """What an attention processor hands on to the attention, which is thus told that its tokens are divided."""

    def __init__(self, context: Context) -> None:
        super().__init__(ContextParallelConfig(ulysses_degree=context.count))
        self.context = context


def _share(chosen: str | None) -> None:
    """Have the attention back-end ``chosen``, the active one without, take tokens that are divided. UserError: it cannot."""
    registry = _AttentionBackendRegistry
    name = registry.get_active_backend()[0] if chosen is None else AttentionBackendName(chosen)
    attend = registry._backends[name]
    if "_parallel_config" not in registry._supported_arg_names[name]:
        raise UserError(f"distributed.context: the attention {name.value!r} cannot be shared by ranks; use 'native'")
    if not hasattr(attend, "shares_tokens"):
        registry._backends[name] = _sharing(attend)


def _sharing(attend: Attention) -> Attention:
    """``attend``, also for divided tokens: a rank that has some tokens of all heads attends to all tokens with some heads."""

    @wraps(attend)
    def attention(*args: Any, **given: Any) -> Tensor:
        shared = given.get("_parallel_config")
        if not isinstance(shared, _Shared):
            return attend(*args, **given)
        mask, tokens = given.get("attn_mask"), given["key"].shape[1]
        # as autocast gives them to the attention, which is half of the bytes to exchange
        whole = {name: tokens_to_heads(to_autocast(given[name]), shared.context) for name in ("query", "key", "value")}
        if mask is not None and mask.shape[-1] == tokens:
            mask = torch.cat(shared.context.collect(mask).unbind(), -1)
        found = attend(**{**given, **whole, "attn_mask": mask, "_parallel_config": None})
        return heads_to_tokens(found, shared.context)

    attention.shares_tokens = True  # type: ignore[attr-defined]
    return attention
