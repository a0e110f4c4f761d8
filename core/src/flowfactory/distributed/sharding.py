"""Shards of tensors and modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of ``tensor``, sharing its memory; ``tensor`` itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_shard(own: Tensor, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """``own`` as this rank's shard of a tensor, of ``shape`` or that of ``like``, that is divided as ``like`` is.

    They share their memory.
    """
    if not isinstance(like, DTensor):
        return own
    whole = torch.empty(like.shape if shape is None else tuple(shape), device="meta")
    # not DTensor.from_local, which copies to the mesh's device what is off-loaded to the host
    spec = DTensorSpec(like.device_mesh, like.placements, TensorMeta(whole.shape, whole.stride(), own.dtype))
    return DTensor(own, spec, requires_grad=False)  # type: ignore[no-untyped-call]


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those ``tensors`` of which this rank's part holds a number that is not finite."""
    sound: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = local_shard(tensor.detach())
        if own.is_floating_point() and own.numel():
            sound[name] = torch.stack(torch.aminmax(own)).isfinite().all()  # NaN is both; no copy of the tensor is made
    by_device: dict[torch.device, list[str]] = {}
    for name, flag in sound.items():
        by_device.setdefault(flag.device, []).append(name)
    told = {name: flag for names in by_device.values() for name, flag in _read_flags(names, sound)}
    return [name for name in sound if not told[name]]


def _read_flags(names: Sequence[str], flags: Mapping[str, Tensor]) -> Iterator[tuple[str, bool]]:
    """Those of ``names``, which are on one device, fetched together."""
    yield from zip(names, torch.stack([flags[name] for name in names]).tolist(), strict=True)


def full_tensor(tensor: Tensor) -> Tensor:
    """All of ``tensor``; a joint work of the ranks where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def unsharded(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within it sharded ``modules`` are whole, so that forwards without gradients gather nothing."""
    from torch.distributed.fsdp import FSDPModule

    parts = [part for module in modules for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)
