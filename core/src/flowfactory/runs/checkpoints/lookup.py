"""Which checkpoints there are, and whether each is whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from flowfactory.checkpoint_names import list_checkpoints
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.errors import UserError
from flowfactory.runs.checkpoints.files import Damaged
from flowfactory.runs.checkpoints.manifest import Manifest, find_damage
from flowfactory.types import Say


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, or None; whether it is whole is not looked at."""
    return max(list_checkpoints(folder), key=lambda path: int(path.name), default=None)


def saved_fixed_config(folder: Path) -> dict[str, Any] | None:
    """What the newest checkpoint whose manifest can be read holds a resumed run to; None: there is none."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return Manifest.read(path).fixed
        except Damaged:
            continue
    return None


def find(
    folder: Path,
    iteration: int | None = None,
    say: Say = lambda _: None,
    roles: Collection[str] | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """The checkpoint of ``iteration``, or the newest whole one; ``say`` hears of damaged ones that are passed over.

    Of some ``roles``, it is looked at their shards alone. Every one of the ``ranks`` calls it, and each reads its share.
    UserError: there is none, or the one that was asked for is damaged.
    """
    there = ranks.broadcast(list_checkpoints(folder))
    if iteration is None:
        if there:
            return newest_intact(there, lambda path: find_damage_together(path, ranks, roles), say)
        raise UserError(f"{folder} holds no checkpoint")
    path = folder / f"{iteration:06d}"
    if path not in there:
        known = ", ".join(str(int(p.name)) for p in there)
        raise UserError(f"{folder} holds no checkpoint of iteration {iteration}" + (f"; there is {known}" if known else ""))
    if problem := find_damage_together(path, ranks, roles):
        raise UserError(f"{path} is damaged: {problem}; choose another checkpoint")
    return path


def find_damage_together(path: Path, ranks: Ranks, roles: Collection[str] | None = None) -> str | None:
    """What is wrong with a checkpoint, of which each of the ``ranks`` reads its share; None if it is whole."""
    found = ranks.gather(find_damage(path, ranks.rank, ranks.count, roles))
    return next((problem for problem in found if problem), None)


def newest_intact(there: Sequence[Path], damage: Callable[[Path], str | None], say: Say) -> Path:
    """The newest of ``there`` without damage; ``say`` hears of those passed over. UserError: there is none."""
    for path in reversed(there):
        problem = damage(path)
        if problem is None:
            return path
        say(f"warning: {path} is damaged and skipped: {problem}")
    raise UserError(f"{there[0].parent} holds no intact checkpoint; start a new run in another --out")
