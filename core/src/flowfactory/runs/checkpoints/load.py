"""A checkpoint's weights into a policy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowfactory.distributed.sharding import as_shard, local_shard, non_finite
from flowfactory.errors import RunError, UserError
from flowfactory.runs.checkpoints.files import Damaged
from flowfactory.runs.checkpoints.manifest import Manifest
from flowfactory.runs.checkpoints.roles import KEPT, PRESENT, WEIGHTS, kept_name, kept_role
from flowfactory.runs.checkpoints.shards import StoredTensor, own_rows, read_index, read_rows

if TYPE_CHECKING:
    from flowfactory.policy.policy import Policy


def load(path: Path, policy: Policy, others: Mapping[str, Tensor] | None = None) -> None:
    """Read a checkpoint's weights into ``policy``, and into the tensors ``others`` what it has under their names, in place.

    Each rank reads what it needs, however many wrote. RunError: it has other weights than ``policy``. UserError: it is damaged,
    or what it has is not finite.
    """
    others = others or {}
    with reading(path):
        manifest = Manifest.read(path)
        index = read_index(manifest.shards(path))
        kept = dict.fromkeys(kept_name(name) for name in index if name.startswith(KEPT))
        _refuse_other_weights(path, index, policy.state(), kept, others)
        policy.reserve(kept)  # only now, when the files are known to have as much
        state = {**policy.state(), **others}
        read_rows(index, own_rows(state))
    policy.mark_restored(from_start=bool(manifest.reference))
    _refuse_non_finite(path, policy.non_finite(others), len(state))


def read_trained(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Read into ``weights``, by the names of the parameters, what a checkpoint trained, each rank its rows.

    RunError: it trained others. UserError: it is damaged, or what it has is not finite.
    """
    state = {f"{PRESENT}{name}": own for name, own in weights.items()}
    with reading(path):
        index = _read_weights(path, Manifest.read(path), PRESENT)
        _refuse_other_weights(path, index, state, (), {})
        read_rows(index, own_rows(state))
    _refuse_non_finite(path, non_finite(weights), len(weights))


def load_to_draw(path: Path, policy: Policy, name: str | None = None) -> None:
    """Read the weights that a checkpoint keeps as ``name`` into a ``policy`` that does not train; the trained ones where None.

    So too where it keeps none of that name: an average begins with the trained weights. Nothing else is read, but kept weights
    once they are used. RunError, UserError: as :func:`load`.
    """
    with reading(path):
        manifest = Manifest.read(path)
        wanted = None if name is None else kept_role(name)
        chosen = f"{KEPT}{name}/" if wanted in manifest.roles() else PRESENT
        state = _present(policy)
        index = _read_weights(path, manifest, chosen)
        _refuse_other_weights(path, index, policy.state(), (), {})
        read_rows(index, own_rows(state))

    def read_kept(other: str) -> dict[str, Tensor]:
        with reading(path):
            if kept_role(other) not in manifest.roles():
                raise RunError(f"{path} keeps no weights called {other!r}; keep or average them when the run starts")
            index = _read_weights(path, manifest, f"{KEPT}{other}/")
            _refuse_other_weights(path, index, policy.state(), (), {})
            found = {key: as_shard(torch.empty_like(local_shard(own)), own) for key, own in _present(policy).items()}
            read_rows(index, own_rows(found))
        return {key.removeprefix(PRESENT): local_shard(own) for key, own in found.items()}

    policy.mark_read(name, read_kept)
    _refuse_non_finite(path, policy.non_finite(), len(state))


def _present(policy: Policy) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in policy.state().items() if name.startswith(PRESENT)}


def _read_weights(path: Path, manifest: Manifest, place: str) -> dict[str, StoredTensor]:
    """The weights whose names begin with ``place``, under the names of the present ones."""
    role = WEIGHTS if place == PRESENT else kept_role(place.removeprefix(KEPT).removesuffix("/"))
    index = read_index(manifest.shards(path, [role]))
    return {f"{PRESENT}{name.removeprefix(place)}": stored for name, stored in index.items() if name.startswith(place)}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within it a checkpoint is read. UserError: it is damaged, or cannot be."""
    try:
        yield
    except Damaged as error:
        raise UserError(f"{path} is damaged: {error}; choose another checkpoint, or delete it") from error
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror}; choose another checkpoint") from error


def _refuse_non_finite(path: Path, bad: list[str], count: int) -> None:
    if bad:
        told = f"{path}: {bad[0]} is not finite ({len(bad)} of {count} tensors)"
        raise UserError(f"{told}; choose another checkpoint, or delete it")


def _refuse_other_weights(
    path: Path,
    index: Mapping[str, StoredTensor],
    state: Mapping[str, Tensor],
    kept: Collection[str],
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
