"""A checkpoint's weights into a policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from flowfactory.errors import RunError, UserError
from flowfactory.runs.checkpoints.files import Damaged
from flowfactory.runs.checkpoints.manifest import Manifest
from flowfactory.runs.checkpoints.shards import StoredTensor, own_rows, read_index, read_rows

if TYPE_CHECKING:
    from flowfactory.policy.policy import Policy

PRESENT, KEPT = "present/", "kept/"


def load(path: Path, policy: Policy, others: Mapping[str, Tensor] | None = None) -> None:
    """Read a checkpoint's weights into ``policy``, and into the tensors ``others`` what it has under their names, in place.

    Each rank reads what it needs, however many wrote. RunError: it has other weights than ``policy``. UserError: it is damaged,
    or what it has is not finite.
    """
    others = others or {}
    try:
        index = read_index(Manifest.read(path).shards(path))
        kept = dict.fromkeys(name.removeprefix(KEPT).rpartition("/")[0] for name in index if name.startswith(KEPT))
        _refuse_other_weights(path, index, policy.state(), kept, others)
        policy.reserve(kept)  # only now, when the files are known to have as much
        state = {**policy.state(), **others}
        read_rows(index, own_rows(state))
    except Damaged as error:
        raise UserError(f"{path} is damaged: {error}; choose another checkpoint, or delete it") from error
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror}; choose another checkpoint") from error
    policy.mark_restored()
    if bad := policy.non_finite(others):
        raise UserError(
            f"{path}: {bad[0]} is not finite ({len(bad)} of {len(state)} tensors); choose another checkpoint, or delete it"
        )


def _refuse_other_weights(
    path: Path,
    index: Mapping[str, StoredTensor],
    state: Mapping[str, Tensor],
    kept: Mapping[str, None],
    others: Mapping[str, Tensor],
) -> None:
    """RunError: ``index`` has not just the present weights in ``state``, those of each ``kept`` and the ``others``."""
    present = {name.removeprefix(PRESENT): tensor for name, tensor in state.items() if name.startswith(PRESENT)}
    places = [PRESENT, *(f"{KEPT}{name}/" for name in kept)]
    wanted = {f"{place}{name}": tensor for place in places for name, tensor in present.items()} | dict(others)
    lacking = [name for name, tensor in wanted.items() if name not in index or not _fits(index[name], tensor)]
    lacking += [name for kind in (PRESENT, KEPT) for name in index if name.startswith(kind) and name not in wanted]
    if lacking:
        raise RunError(f"{path} holds other weights than the config trains: {lacking[0]} ({len(lacking)} in all)")


def _fits(stored: StoredTensor, tensor: Tensor) -> bool:
    """Whether one can be read into the other: of its shape, and its dtype but for the number of digits."""
    same_kind = stored.dtype == tensor.dtype or (stored.dtype.is_floating_point and tensor.dtype.is_floating_point)
    return stored.shape == tuple(tensor.shape) and same_kind
