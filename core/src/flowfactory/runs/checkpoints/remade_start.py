"""The weights that training started from, written again where their files are missing or damaged.

They are those of the model, which a run that starts or resumes reads anyway; checksums tell whether they still are.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flowfactory.distributed.ranks import Ranks
from flowfactory.policy.policy import REFERENCE
from flowfactory.runs.checkpoints.files import Damaged, Stored
from flowfactory.runs.checkpoints.folders import move
from flowfactory.runs.checkpoints.manifest import START, Manifest, find_damage
from flowfactory.runs.checkpoints.roles import kept_role, shard_name
from flowfactory.runs.checkpoints.shards import Rows, write_shard

OTHER_MODEL = "it is not made again from another model, or on other ranks, than the run started with; resume with those"


def find_lacking(path: Path, ranks: Ranks) -> Manifest | None:
    """The manifest of a checkpoint whose weights in START are missing or damaged; None where they are not. A joint work."""
    manifest = None
    if ranks.leads:
        with suppress(Damaged):
            manifest = Manifest.read(path)
    manifest = ranks.broadcast(manifest)
    if manifest is None or not manifest.reference:
        return None
    found = find_damage(path, ranks.rank, ranks.count, [kept_role(REFERENCE)])
    return manifest if ranks.any(found is not None) else None


def remake_start(folder: Path, temporary: Path, stated: dict[str, Stored], mine: Sequence[Rows], ranks: Ranks) -> str | None:
    """Write START of the checkpoints in ``folder`` again, of which each rank has the tensors ``mine``. A joint work.

    What keeps them from being, to the byte, the files ``stated``: then nothing is replaced. None: they are. All is written to
    ``temporary`` first.
    """
    problem, own = None, {}
    if ranks.leads:
        shutil.rmtree(temporary, ignore_errors=True)
    ranks.barrier()
    try:
        temporary.mkdir(exist_ok=True)
        if mine:
            name = shard_name(kept_role(REFERENCE), ranks.rank)
            own = {name: write_shard(temporary / name, mine)}
    except OSError as error:
        problem = f"{folder / START} cannot be written again: {error.strerror}"
    told = ranks.gather((own, problem))
    found = {name: stored for written, _ in told for name, stored in written.items()}
    problem = next((one for _, one in told if one), None if found == stated else OTHER_MODEL)
    if ranks.leads:
        if problem is None:
            _replace(folder / START, temporary)
        else:
            shutil.rmtree(temporary, ignore_errors=True)
    ranks.barrier()
    return problem


def _replace(start: Path, temporary: Path) -> None:
    if start.is_symlink() or not start.is_dir():
        start.unlink(missing_ok=True)
    move(temporary, start)
