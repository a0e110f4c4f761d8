"""A checkpoint's weights into a policy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as read_into

from flowfactory.errors import RunError, UserError

if TYPE_CHECKING:
    from flowfactory.policy.policy import Policy


def load(path: Path, policy: Policy, others: Mapping[str, Tensor] | None = None) -> None:
    """Read a checkpoint's weights into ``policy``, and into the tensors ``others`` what it has under their names, in place.

    Each rank reads what it needs, however many wrote. RunError: it has other weights than ``policy``. UserError: what it has is
    not finite.
    """
    reader = FileSystemReader(path)
    saved = reader.read_metadata().state_dict_metadata
    policy.reserve({name.removeprefix("kept/").rpartition("/")[0] for name in saved if name.startswith("kept/")})
    weights = policy.state()
    state = {**weights, **(others or {})}
    there = {name: tuple(entry.size) for name, entry in saved.items() if isinstance(entry, TensorStorageMetadata)}
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    lacking = [name for name in wanted if there.get(name) != wanted[name]]
    lacking += [name for name in there if name.startswith(("present/", "kept/")) and name not in wanted]
    if lacking:
        raise RunError(f"{path} holds other weights than the config trains: {lacking[0]} ({len(lacking)} in all)")
    with warnings.catch_warnings():  # that there is no process group, which reading needs not
        warnings.simplefilter("ignore")
        read_into(state, storage_reader=reader, no_dist=True)
    policy.mark_restored()
    if bad := policy.non_finite(others):
        raise UserError(
            f"{path}: {bad[0]} is not finite ({len(bad)} of {len(state)} tensors); choose another checkpoint, or delete it"
        )
