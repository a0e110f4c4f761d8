"""Counts the storages that a traced run makes, until each is gone."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from flowfactory.runs.estimate.fake_tensors import mask_indices, to_fake

aten = torch.ops.aten


class StorageCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that come to be within it, until they are gone.

    Operations on fake tensors stay fake, those on real ones real, and noise is fake. Any number that is asked of a fake tensor
    is 1. Gradients, and copies of the weights that train, count ``share`` of their bytes: they are as divided as the weights.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.share = 1.0
        self._fake = fake
        self._known: dict[int, weakref.ref[Any]] = {}
        self._bytes: dict[int, float] = {}
        self._weights: set[int] = set()
        self._live = self._peak = 0.0

    @property
    def live(self) -> float:
        """Bytes now."""
        return self._live

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True  # being wrapped for it would cost a fifth of the time

    def begin(self) -> float:
        """Bytes now, from where on the next :meth:`lap` is."""
        self._peak = self._live
        return self._live

    def lap(self) -> float:
        """The most bytes there were since this was last asked."""
        peak, self._peak = self._peak, self._live
        return peak

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """``parameters`` are the weights that train."""
        for parameter in parameters:
            self._note(parameter, 0)
            self._weights.add(parameter.untyped_storage()._cdata)
            parameter.register_post_accumulate_grad_hook(self._count_gradient)  # type: ignore[no-untyped-call]

    def _count_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        self._count(storage._cdata, self.share * storage.nbytes())

    def _count(self, key: int, size: float) -> None:
        self._live += size - self._bytes.get(key, 0)
        self._bytes[key] = size
        self._peak = max(self._peak, self._live)

    def _note(self, tensor: Tensor, share: float) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return

        def gone(_: object) -> None:
            del self._known[key]
            self._live -= self._bytes.pop(key)

        self._known[key] = weakref.ref(storage, gone)
        self._count(key, share * storage.nbytes())

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.prim.device.default:  # of three operations one
            return args[0].fake_device if isinstance(args[0], FakeTensor) else function(*args)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in given:
            self._note(tensor, 0)  # what was there before is counted by others
        result = self._run(function, given, args, kwargs or {})
        copies = function in (aten.clone.default, aten._to_copy.default) and self._is_weight(given[0])
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                copy = copies and tensor.dtype == given[0].dtype
                weight = (tensor.is_meta and not isinstance(tensor, FakeTensor)) or (given and given[0].is_meta)
                self._note(tensor, 0 if weight else self.share if copy else 1)
        return result

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._weights

    def _run(self, function: Any, given: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        fakes = any(isinstance(tensor, FakeTensor) for tensor in given)
        if fakes and function is aten._local_scalar_dense.default:
            return {torch.bool: True, torch.int64: 1, torch.int32: 1}.get(given[0].dtype, 1.0)
        if fakes and function is aten.equal.default:
            return True
        if fakes and function is aten.index.Tensor:  # a mask whose numbers are known says how many there are
            places = [mask_indices(index) for index in args[1]]
            args = (args[0], [place for found in places for place in found])
        arrives = function is aten._to_copy.default and given[0].is_meta and kwargs.get("device") is not None
        if arrives:
            with self._fake:
                return torch.empty(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype)
        if fakes and any(tensor.requires_grad and not isinstance(tensor, FakeTensor) for tensor in given):
            # real ones that fake ones were written into
            args, kwargs = tree_map(lambda leaf: to_fake(leaf, self._fake) if _in_graph(leaf) else leaf, (args, kwargs))
        noise = function in (aten.randn.default, aten.randn.generator)
        with self._fake if noise else nullcontext():
            return function(*args, **kwargs)


def _in_graph(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad
