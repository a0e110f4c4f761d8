"""A transformer's repeated blocks: found, recomputed in the backward pass, compiled.

Quantised first, then adapted by LoRA, checkpointed, compiled, and sharded last. No name of a parameter changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as computed_again

from flowfactory.errors import UserError

Forward = Callable[..., Any]
LARGE = 100_000_000
"""Weights."""
GRAPHS = 64
"""Of one class of blocks: with a gradient or without, adapters on or off, inputs that want one, sizes fixed or free."""


def find_blocks(module: nn.Module, names: Sequence[str] = ()) -> list[nn.Module]:
    """The repeated blocks of ``module`` in order: the members of its ModuleLists whose class is one of ``names``.

    Without names, the classes that a model of diffusers calls its blocks. Finds them after ``fully_shard`` too.
    """
    wanted = set(names)
    if not wanted:
        wanted = {name for key in ("_repeated_blocks", "_no_split_modules") for name in getattr(module, key, None) or ()}
    listed = {id(member) for members in module.modules() if isinstance(members, nn.ModuleList) for member in members}
    return [m for m in module.modules() if id(m) in listed and wanted & {kind.__name__ for kind in type(m).__mro__}]


def check_names(modules: Iterable[nn.Module], names: Sequence[str]) -> None:
    """UserError: one of ``names`` is the class of no repeated block of ``modules``."""
    modules = list(modules)
    for name in names:
        if not any(find_blocks(module, [name]) for module in modules):
            known = sorted({type(member).__name__ for module in modules for member in _outermost(module)})
            there = f"those of {type(modules[0]).__name__} are {', '.join(known)}" if known else "there are none"
            raise UserError(f"model: its blocks name {name!r}, which is no class of its repeated blocks; {there}")


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the ModuleLists of ``module``, but not of lists inside these."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _outermost(child)


def require_blocks(module: nn.Module, names: Sequence[str], key: str) -> list[nn.Module]:
    """The blocks. UserError: there are none, and the option ``key`` is about them."""
    found = find_blocks(module, names)
    if not found:
        named = f"{', '.join(names)} is no block of" if names else "no blocks are named of"
        what = f"{key}: {named} {type(module).__name__}"
        raise UserError(f"{what}; name the classes of its repeated blocks in Trainable.blocks, or leave the option out")
    return found


def checkpoint_blocks(module: nn.Module, names: Sequence[str], setting: str) -> None:
    """Keep of the blocks that ``setting`` says only the inputs, and compute their inside again in the backward.

    ``none``; ``blocks``, all of them; or ``every-n``, the first and each n-th after it. Nothing changes without a graph.
    Activation checkpointing, arXiv:1604.06174. UserError: there are no blocks.
    """
    if setting == "none":
        return
    n = 1 if setting == "blocks" else int(setting.removeprefix("every-"))
    for block in require_blocks(module, names, "training.activation_checkpointing")[::n]:
        # forward and not the block itself is wrapped: its name stays, and the casts of fully_shard stay outside
        replace_forward(block, _recomputing(type(block).forward))


@cache
def _recomputing(forward: Forward) -> Forward:
    def recomputing(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        inside = partial(forward, block, **kwargs)
        # in eval mode nothing is drawn, and the state of the generators need not be kept
        return computed_again(inside, *args, use_reentrant=False, preserve_rng_state=block.training)

    return recomputing


def round_layers(module: nn.Module, dtype: torch.dtype) -> None:
    """Have ``module`` in float32 but for layers whose weights autocast rounds to ``dtype`` anyway, which are stored so."""
    module.float()
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            layer.to(dtype)


def replace_forward(module: nn.Module, forward: Forward) -> None:
    """Have ``module`` run ``forward(module, ...)``."""
    module.forward = MethodType(forward, module)  # a method, so that a copy of the module runs its own weights


def compiles_by_default(module: nn.Module, names: Sequence[str], kind: str, trains: bool, able: bool) -> bool:
    """Whether it is worth compiling the blocks of ``module`` on a device of ``kind``, where it ``trains`` or only draws.

    able: whether there is a compiler for the device. A compiler takes a minute or so, which a small model does not win back.
    """
    return kind == "cuda" and trains and able and is_large([module]) and bool(find_blocks(module, names))


def is_large(modules: Iterable[nn.Module]) -> bool:
    """Whether ``modules`` together are so large that their speed is worth a word."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters()) >= LARGE


def compile_blocks(module: nn.Module, names: Sequence[str], lenient: bool = False) -> Callable[[], None]:
    """Have torch compile each block, when it first runs; what is returned undoes it. UserError: there are no blocks.

    lenient: what cannot be compiled runs as it is, without a word.
    """
    found = require_blocks(module, names, "training.compile")
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, GRAPHS)
    config.suppress_errors = lenient
    plain: list[tuple[nn.Module, Forward]] = []
    for block in found:
        forward: Any = block.forward
        plain.append((block, forward.__func__))
        replace_forward(block, _compile(forward.__func__))

    def undo() -> None:
        for block, forward in plain:
            replace_forward(block, forward)

    return undo


@cache
def _compile(forward: Forward) -> Forward:
    # fused operations round as separate ones do; else bf16 has another ratio with a gradient than without
    return torch.compile(forward, options={"emulate_precision_casts": True})
