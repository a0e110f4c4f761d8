"""The first-block cache: a transformer's blocks are left out while the first one does nearly what it did before.

As diffusers' ``FirstBlockCacheConfig`` has it (after ParaAttention and TeaCache, arXiv:2411.19108), but decided for each sample
alone, so that what is drawn does not depend on who is drawn beside it. The blocks run where any sample of a forward needs them,
and count for those that do.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from flowfactory.errors import UserError

LISTS = ("transformer_blocks", "single_transformer_blocks", "blocks", "layers")
"""What transformers of diffusers call the lists of blocks that the latents go through, in their order."""

Forward = Callable[..., Any]


class Remembering:
    """Forwards within ``remembering(kind)`` are compared with those of the same kind; without ``caches`` with none."""

    def __init__(self, caches: Sequence[FirstBlockCache] = ()) -> None:
        self._caches = caches

    @contextmanager
    def __call__(self, kind: Hashable) -> Iterator[None]:
        """Within it forwards are of ``kind``."""
        for cache in self._caches:
            cache.kind = kind
        yield

    def forget(self) -> None:
        """Compare the next forwards with none: their samples are others."""
        for cache in self._caches:
            cache.forget()


remember_nothing = Remembering()
"""Where there is no cache."""


@contextmanager
def use_feature_cache(transformers: Iterable[nn.Module], threshold: float | None) -> Iterator[Remembering]:
    """Within it forwards of ``transformers`` without gradients leave out blocks; it begins and ends with nothing remembered.

    threshold: the relative change of what the first block adds up to which the others are left out; None: they never are.
    UserError: a transformer has no lists of blocks.
    """
    caches = () if threshold is None else [FirstBlockCache(transformer, threshold) for transformer in transformers]
    with ExitStack() as stack:
        for cache in caches:
            stack.enter_context(cache.in_place())
        yield Remembering(caches)


def cached_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The blocks that the latents go through, in order. UserError: there are none by these names."""
    lists = [child for name, child in transformer.named_children() if name in LISTS and isinstance(child, nn.ModuleList)]
    if found := [block for blocks in lists for block in blocks]:
        return found
    kind = type(transformer).__name__
    raise UserError(f"sampling.feature_cache: {kind} has no list of blocks called {', '.join(LISTS)}; leave it out")


@dataclass
class _Memory:
    """Of forwards of one kind.

    moved: what the first block added to each sample at its last whole forward; rest: what the others then added to each of the
    first one's outputs. head: the first one's outputs now. fresh [b]: the samples that this forward is whole for, and whether
    there are any. outputs: what each block's answer looks like.
    """

    moved: Tensor
    head: Any
    fresh: Tensor
    runs: bool = True
    rest: Sequence[Tensor | None] = ()
    outputs: dict[int, Any] = field(default_factory=dict)


class FirstBlockCache:
    """Of one transformer. ``kind`` is that of the forwards to come."""

    def __init__(self, transformer: nn.Module, threshold: float) -> None:
        self.blocks, self.threshold = cached_blocks(transformer), threshold
        self.kind: Hashable = None
        self._known: dict[Hashable, _Memory] = {}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the blocks are cached."""
        last = len(self.blocks) - 1
        with ExitStack() as stack:
            for place, block in enumerate(self.blocks if last else ()):
                run = partial(self._first, block) if place == 0 else partial(self._after, place, place == last)
                stack.enter_context(_replaced_forward(block, run))
            yield
        self.forget()

    def forget(self) -> None:
        """Have nothing remembered of any kind."""
        self._known.clear()

    def _first(self, block: nn.Module, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        head = forward(*args, **kwargs)
        if torch.is_grad_enabled():
            return head
        moved = _latents_of(block, head) - (args[0] if args else kwargs["hidden_states"])
        before = self._known.get(self.kind)
        if before is None or before.moved.shape != moved.shape:
            whole = torch.ones(len(moved), dtype=torch.bool, device=moved.device)
            self._known[self.kind] = _Memory(moved, head, whole)
        else:
            before.head, before.fresh = head, ~(_relative_change(moved, before.moved) <= self.threshold)
            before.runs = bool(before.fresh.any())
            before.moved = torch.where(_beside(before.fresh, moved), moved, before.moved)
        return head

    def _after(self, place: int, is_last: bool, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return forward(*args, **kwargs)
        memory = self._known[self.kind]
        if not memory.runs:
            like = memory.outputs[place]
            # nobody reads what stands between the first and the last block, but code between them may look at its shape
            return _joined(_remembered(memory, like), like) if is_last else like
        found = forward(*args, **kwargs)
        memory.outputs[place] = tree_map(_without_numbers, found)
        if is_last:
            found = _joined(_remember(memory, found), found)
        return found


def _remember(memory: _Memory, found: Any) -> list[Tensor | None]:
    """The last block's outputs: what it ``found`` of samples that are fresh, which is remembered, and else as remembered."""
    heads, now = _heads(memory.head, found), _pieces(found)
    rest = [None if head is None or piece is None else piece - head for head, piece in zip(heads, now, strict=True)]
    if not memory.rest:
        memory.rest = rest
        return now
    memory.rest = [_choose(memory.fresh, *pair) for pair in zip(rest, memory.rest, strict=True)]
    return [_choose(memory.fresh, *pair) for pair in zip(now, _remembered(memory, found), strict=True)]


def _remembered(memory: _Memory, like: Any) -> list[Tensor | None]:
    """The last block's outputs, which are to be ``like`` these, with what the blocks after the first added before."""
    heads = _heads(memory.head, like)
    return [None if head is None or rest is None else rest + head for head, rest in zip(heads, memory.rest, strict=True)]


def _latents_of(block: nn.Module, outputs: Any) -> Tensor:
    """Of a block's outputs, those of the latents."""
    if isinstance(outputs, Tensor):
        return outputs
    from diffusers.hooks._helpers import TransformerBlockRegistry

    for kind in type(block).__mro__:  # sharding makes a class of its own
        if issubclass(kind, nn.Module) and kind is not nn.Module:
            try:
                found: Tensor = outputs[TransformerBlockRegistry.get(kind).return_hidden_states_index]
                return found
            except ValueError:
                continue
    told = f"diffusers does not say which output of {type(block).__name__} are the latents"
    raise UserError(f"sampling.feature_cache: {told}; leave it out")


def _pieces(outputs: Any) -> list[Tensor | None]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _joined(pieces: Sequence[Tensor | None], like: Any) -> Any:
    return pieces[0] if isinstance(like, Tensor) else tuple(pieces)


def _heads(head: Any, outputs: Any) -> list[Tensor | None]:
    """The first block's outputs, one for each of the last one's ``outputs``: text and latents as one where those are."""
    heads = _pieces(head)
    if len(heads) > 1 and isinstance(outputs, Tensor):
        return [torch.cat([each for each in heads if each is not None], 1)]
    return heads


def _relative_change(now: Tensor, before: Tensor) -> Tensor:
    """[b]: the mean absolute difference of each sample, relative to the mean absolute value before."""
    return (now - before).abs().flatten(1).mean(1) / before.abs().flatten(1).mean(1)


def _choose(fresh: Tensor, new: Tensor | None, old: Tensor | None) -> Tensor | None:
    """``new`` of the samples that are fresh, and ``old`` of the others."""
    return new if new is None or old is None else torch.where(_beside(fresh, new), new, old)


def _beside(fresh: Tensor, other: Tensor) -> Tensor:
    return fresh.reshape(-1, *([1] * (other.dim() - 1)))


def _without_numbers(value: Any) -> Any:
    return value.new_zeros(()).expand(value.shape) if isinstance(value, Tensor) else value


@contextmanager
def _replaced_forward(block: nn.Module, run: Forward) -> Iterator[None]:
    """Within it ``block`` runs ``run`` with its own forward first among the arguments."""
    own = vars(block).get("forward")  # of blocks that are checkpointed or compiled
    block.forward = partial(run, block.forward)
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own
