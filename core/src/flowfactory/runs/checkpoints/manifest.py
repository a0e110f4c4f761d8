"""``checkpoint.json``: every file of a checkpoint with its size and checksum, and what a resumed run may not change."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowfactory.errors import UserError
from flowfactory.runs.checkpoints.files import Stored, file_record, flush_to_disk
from flowfactory.runs.resume import checksum

MANIFEST = "checkpoint.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What ``checkpoint.json`` says: ``shard`` of the ``ranks`` held one copy of the weights together.

    ``fixed`` is what a resumed run may not change, :func:`flowfactory.runs.resume.fixed_config`.
    """

    iteration: int
    ranks: int
    shard: int
    fixed: dict[str, Any]
    files: dict[str, Stored]

    def write(self, folder: Path) -> None:
        """Write it, onto the disk."""
        content = asdict(self) | {"fixed": {"hash": checksum(self.fixed), "values": self.fixed}}
        path = folder / MANIFEST
        path.write_text(json.dumps({"format": FORMAT, "checksum": checksum(content), **content}, indent=1), encoding="utf-8")
        flush_to_disk(path)

    @staticmethod
    def read(folder: Path) -> Manifest:
        """That of a checkpoint. Damaged: it is not what was written. UserError: it is of another version's format."""
        try:
            content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Damaged(f"{MANIFEST} cannot be read") from error
        known = content.pop("format", None) if isinstance(content, dict) else None
        if known != FORMAT and (folder / "training.pt").exists():
            raise UserError(f"{folder} is of an older version, which wrote one file; start a new run in another --out")
        if isinstance(known, int) and known > FORMAT:
            raise UserError(f"{folder} is of a newer version (format {known}, this one reads {FORMAT}); update flowfactory")
        if known != FORMAT or content.pop("checksum", None) != checksum(content):
            raise Damaged(f"{MANIFEST} is not what was written")
        files = {name: Stored(*stored) for name, stored in content.pop("files").items()}
        return Manifest(**{**content, "fixed": content["fixed"]["values"], "files": files})


class Damaged(Exception):
    """What of a checkpoint is missing or not what was written."""


def find_damage(path: Path, rank: int = 0, count: int = 1) -> str | None:
    """What is wrong with a checkpoint, None if it is whole; of ``count`` ranks each looks at its share of the files."""
    try:
        files = Manifest.read(path).files
        for name in sorted(files, key=lambda name: (files[name].bytes, name))[rank::count]:
            if not (path / name).is_file():
                return f"{name} is missing"
            if (size := (path / name).stat().st_size) != files[name].bytes:
                return f"{name} has {size} bytes, not {files[name].bytes}"
            if file_record(path / name) != files[name]:
                return f"{name} is not what was written"
    except Damaged as error:
        return str(error)
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    return None
