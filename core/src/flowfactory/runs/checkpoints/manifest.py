"""``checkpoint.json``: every file of a checkpoint with its size and checksum, and what a resumed run may not change.

Checksums are against accidents. They have no key, so they say nothing of who wrote a checkpoint: whatever is read of one is
checked as a stranger's.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from flowfactory.checkpoint_names import MANIFEST
from flowfactory.config.paths import LONGEST_NAME
from flowfactory.errors import UserError
from flowfactory.policy.lora import Adapters
from flowfactory.policy.policy import REFERENCE
from flowfactory.runs.checkpoints.files import Damaged, Stored, file_record, flush_to_disk
from flowfactory.runs.checkpoints.roles import WEIGHTS, kept_role, role_of_shard, shard_name
from flowfactory.runs.checkpoints.shards import read_index
from flowfactory.runs.resume import checksum
from flowfactory.untrusted_files import Refused, read_json

FORMAT = 3
OLDER = "use the version that wrote it, or start a new run in another --out"
LARGEST, LARGEST_NUMBER = 4 * 2**20, 2**63
"""Bytes of the manifest, which has a hundred for each of thousands of shards; and what no number in it reaches."""
OWN_ROOM = 2**24
"""Bytes that the files beside the shards may have however small those are."""
START = "reference"
"""The folder beside a run's checkpoints with the weights that training started from, where they are kept by value."""


@dataclass(frozen=True)
class Manifest:
    """What ``checkpoint.json`` says: ``shard`` of the ``ranks`` held one copy of the weights together.

    ``fixed`` is what a resumed run may not change, :func:`flowfactory.runs.resume.fixed_config`. ``modules`` are those that
    train, with what was put on them. ``reference`` are the files in START that belong to it, and to others too.
    """

    iteration: int
    ranks: int
    shard: int
    fixed: dict[str, Any]
    files: dict[str, Stored]
    modules: dict[str, Adapters | None] = field(default_factory=dict)
    reference: dict[str, Stored] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it, onto the disk."""
        content = asdict(self) | {"fixed": {"hash": checksum(self.fixed), "values": self.fixed}}
        content["modules"] = {name: adapters and adapters._asdict() for name, adapters in self.modules.items()}
        path = folder / MANIFEST
        path.write_text(json.dumps({"format": FORMAT, "checksum": checksum(content), **content}, indent=1), encoding="utf-8")
        flush_to_disk(path)

    @staticmethod
    def read(folder: Path) -> Manifest:
        """That of a checkpoint. Damaged: it is not what was written. UserError: it is of another version's format."""
        content = _read(folder)
        if unknown := sorted(content.keys() - {field.name for field in fields(Manifest)}):
            raise UserError(f"{folder} is of a newer version: its {MANIFEST} says {unknown[0][:100]!r} too; update flowfactory")
        iteration, ranks, shard, files = (content.get(key) for key in ("iteration", "ranks", "shard", "files"))
        if not (type(iteration) is type(ranks) is type(shard) is int and isinstance(files, dict) and "fixed" in content):
            raise Damaged(f"{MANIFEST} lacks a key, or has something else under it")
        stored = check_files(files)
        if not 0 <= iteration < LARGEST_NUMBER or not 0 < shard <= ranks <= len(stored):
            raise Damaged(f"{MANIFEST} says of its iteration or its ranks what cannot be")
        if lacking := [name for rank in range(ranks) if (name := shard_name(WEIGHTS, rank)) not in stored]:
            raise Damaged(f"{MANIFEST} does not name {lacking[0]}")
        reference = check_files(content.get("reference"))
        if not all(role_of_shard(name) == kept_role(REFERENCE) for name in reference):
            raise Damaged(f"{MANIFEST} names another file than weights that training started from")
        return Manifest(
            iteration, ranks, shard, _check_fixed(content["fixed"]), stored, _check_modules(content.get("modules")), reference
        )

    def roles(self) -> set[str]:
        """What there are shards for."""
        return {role for name in (*self.files, *self.reference) if (role := role_of_shard(name))}

    def kept(self) -> list[str]:
        """The names under which it keeps weights."""
        return sorted(unquote(role.removeprefix("kept-")) for role in self.roles() if role.startswith("kept-"))

    def shards(self, folder: Path, roles: Collection[str] | None = None) -> list[Path]:
        """The files that tensors are in, or those of some ``roles``."""
        return [place / name for place, name, _ in self.places(folder, self.roles() if roles is None else roles)]

    def places(self, folder: Path, roles: Collection[str] | None = None) -> list[tuple[Path, str, Stored]]:
        """The folder and name of each file, and what it has to be; all, or the shards for some ``roles``."""
        there = [(folder, name, stored) for name, stored in self.files.items()]
        there += [(folder.parent / START, name, stored) for name, stored in self.reference.items()]
        return [found for found in there if roles is None or role_of_shard(found[1]) in roles]

    def check_others(self) -> None:
        """Damaged: what lies beside the shards, which is made of what they hold, has far more bytes than they."""
        held = sum(stored.bytes for name, stored in self.files.items() if role_of_shard(name))
        others = sum(stored.bytes for stored in self.files.values()) - held
        if others > 2 * held + OWN_ROOM:
            raise Damaged(f"{MANIFEST} names {others} bytes beside {held} of its shards")


def _read(folder: Path) -> dict[str, Any]:
    """What the file says, without format and checksum."""
    try:
        content = read_json(folder / MANIFEST, LARGEST, folder)
    except Refused as error:
        raise Damaged(f"{MANIFEST} {error}") from error
    except OSError as error:
        raise Damaged(f"{MANIFEST} cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise Damaged(f"{MANIFEST} is not what was written")
    known = content.pop("format", None)
    if known is None and (folder / "training.pt").exists():
        raise UserError(f"{folder} is of an older version, which wrote one file; {OLDER}")
    if type(known) is not int or not 0 < known < LARGEST_NUMBER:
        raise Damaged(f"{MANIFEST} is not what was written")
    if known < FORMAT:
        told = f"of an older version (format {known}, this one reads {FORMAT})"
        raise UserError(f"{folder} is {told}; {OLDER}")
    if known > FORMAT:
        raise UserError(f"{folder} is of a newer version (format {known}, this one reads {FORMAT}); update flowfactory")
    if content.pop("checksum", None) != checksum(content):
        raise Damaged(f"{MANIFEST} is not what was written")
    return content


def _check_fixed(fixed: object) -> dict[str, Any]:
    match fixed:
        case {"hash": str(digest), "values": dict(values), **others} if not others and digest == checksum(values):
            return values
    raise Damaged(f"{MANIFEST} does not say what a resumed run may not change")


def check_files(files: object) -> dict[str, Stored]:
    """What is said of files. Damaged: it cannot be."""
    if not isinstance(files, dict):
        raise Damaged(f"{MANIFEST} lacks a key, or has something else under it")
    return {name: _check_file(name, entry) for name, entry in files.items()}


def _check_file(name: str, entry: object) -> Stored:
    """What is said of a file, whose name leads to a place below the checkpoint."""
    match entry:
        case [size, str(digest)] if _leads_below(name) and type(size) is int and 0 <= size < LARGEST_NUMBER:
            return Stored(size, digest)
    raise Damaged(f"{MANIFEST} names a file that cannot be one of a checkpoint: {name[:100]!r}")


def _leads_below(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "/".join(parts) == name and name.isprintable() and ".." not in parts and not re.match(r"/|$", name)


def _check_modules(modules: object) -> dict[str, Adapters | None]:
    """What was put on the modules, whose names are those of folders in an export."""
    if not isinstance(modules, dict):
        raise Damaged(f"{MANIFEST} lacks a key, or has something else under it")
    return {name: _check_adapters(name, told) for name, told in modules.items()}


def _check_adapters(name: str, told: object) -> Adapters | None:
    if _leads_below(name) and not re.search(r"[/\\:]", name) and len(os.fsencode(name)) <= LONGEST_NAME:
        match told:
            case None:
                return None
            case {"rank": int(rank), "alpha": float(alpha), "targets": list(targets), **others} if not others:
                texts = all(isinstance(target, str) and target.isprintable() for target in targets)
                if type(rank) is int and 0 < rank < LARGEST_NUMBER and 0 < alpha < math.inf and texts:
                    return Adapters(rank, alpha, tuple(targets))
    raise Damaged(f"{MANIFEST} says of the module {name[:100]!r} what cannot be")


def find_damage(path: Path, rank: int = 0, count: int = 1, roles: Collection[str] | None = None) -> str | None:
    """What is wrong with a checkpoint, None if it is whole; of ``count`` ranks each looks at its share of the files.

    Of some ``roles``, their shards alone are looked at. UserError: it is of another version.
    """
    try:
        manifest = Manifest.read(path)
        if path.name != f"{manifest.iteration:06d}":
            raise Damaged(f"{MANIFEST} is that of iteration {manifest.iteration}")
        mine = sorted(manifest.places(path, roles), key=lambda place: (place[2].bytes, place[1]))[rank::count]
        for place in mine:
            _check_size(*place)
        if rank == 0:  # before anything is read whole: a file without content can be of any size
            read_index(manifest.shards(path, roles))
            manifest.check_others()
        for place in mine:
            _check_content(*place)
    except Damaged as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or path} cannot be read: {error.strerror}"
    return None


def _check_size(folder: Path, name: str, written: Stored) -> None:
    file, told = folder / name, _told(folder, name)
    if not file.resolve().is_relative_to(folder.resolve()):
        raise Damaged(f"{told} leads out of the checkpoint")
    if not file.exists():
        raise Damaged(f"{told} is missing" + ("; copy that folder over too" if folder.name == START else ""))
    if (found := file.stat().st_size) != written.bytes and file.is_file():
        raise Damaged(f"{told} has {found} bytes, not {written.bytes}")


def _check_content(folder: Path, name: str, written: Stored) -> None:
    try:
        found = file_record(folder / name)
    except Refused as error:
        raise Damaged(f"{_told(folder, name)} {error}") from error
    if found != written:
        raise Damaged(f"{_told(folder, name)} is not what was written")


def _told(folder: Path, name: str) -> str:
    """The file as a message has it, which names the checkpoint already."""
    return str(folder / name) if folder.name == START else name
