"""Whether wheels and source distributions hold what git has of their package, and no more: ``… release_archives.py FOLDER``."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from email import message_from_bytes
from pathlib import Path

from release_versions import ROOT, package_folders, read_version

OF_HATCHLING = {"PKG-INFO", ".gitignore"}
"""What the builder adds to a source distribution."""
LARGEST = 50 * 2**20
"""Bytes of one archive; the index takes 100 MB, and a release is nineteen packages twice."""


def find_faults(root: Path, archives: Path) -> list[str]:
    """A sentence for each archive in the folder ``archives`` that is missing, is one too many, or holds something else."""
    version = read_version(root)
    faults, expected = [], set()
    for folder in package_folders(root):
        name = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
        stem = f"{name.replace('-', '_')}-{version}"
        for archive in (archives / f"{stem}-py3-none-any.whl", archives / f"{stem}.tar.gz"):
            expected.add(archive.name)
            told = archive_faults(archive, tracked_files(folder), name, version) if archive.is_file() else ["is missing"]
            faults += [f"{archive.name}: {sentence}" for sentence in told]
    others = sorted(path.name for path in archives.iterdir() if path.name not in expected)
    return faults + [f"{name}: is of no package at version {version}; delete it" for name in others]


def tracked_files(folder: Path) -> dict[str, bytes]:
    """What git has of a package, by path within its folder."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, check=True).stdout.decode()
    return {path: (folder / path).read_bytes() for path in listed.split("\0") if path}


def archive_faults(archive: Path, tracked: Mapping[str, bytes], name: str, version: str) -> list[str]:
    """What is wrong with a wheel or a source distribution of the package ``name`` whose files are ``tracked``."""
    stem = f"{name.replace('-', '_')}-{version}"
    wheel = archive.suffix == ".whl"
    held = _read_wheel(archive) if wheel else _read_source(archive, stem)
    information = f"{stem}.dist-info"
    if wheel:
        metadata = f"{information}/METADATA"
        wanted = {path.removeprefix("src/"): content for path, content in tracked.items() if path.startswith("src/")}
        wanted[f"{information}/licenses/LICENSE"] = tracked["LICENSE"]
        added = {f"{information}/{file}" for file in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    else:
        metadata, wanted, added = "PKG-INFO", dict(tracked), OF_HATCHLING
    faults = [f"lacks {path}" for path in sorted(wanted.keys() - held.keys())]
    faults += [f"lacks {path}" for path in sorted(added - held.keys() - {".gitignore"})]
    faults += [f"holds {path}, which git does not" for path in sorted(held.keys() - wanted.keys() - added)]
    faults += [f"holds another {path}" for path in sorted(wanted.keys() & held.keys()) if wanted[path] != held[path]]
    faults += _metadata_faults(held.get(metadata, b""), name, version)
    if (size := archive.stat().st_size) > LARGEST:
        faults.append(f"is {size / 2**20:.0f} MiB; leave something out")
    return faults


def _read_wheel(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {entry.filename: opened.read(entry) for entry in opened.infolist() if not entry.is_dir()}


def _read_source(archive: Path, stem: str) -> dict[str, bytes]:
    held = {}
    with tarfile.open(archive) as opened:
        for entry in opened:
            if (content := opened.extractfile(entry)) is not None:
                held[entry.name.removeprefix(f"{stem}/")] = content.read()
    return held


def _metadata_faults(written: bytes, name: str, version: str) -> Iterator[str]:
    stated = message_from_bytes(written)
    wanted = {"Name": name, "Version": version, "License-Expression": "Apache-2.0", "Requires-Python": ">=3.11"}
    for key, value in wanted.items():
        if stated[key] != value:
            yield f"states {key}: {stated[key]}, and not {value}"
    if not str(stated.get_payload()).strip():
        yield "has no description for its page on the index"
    for line in stated.get_all("Requires-Dist", []):
        if "@" in line:  # a file or a repository, which the index refuses
            yield f"requires {line!r}; name a version"


def main() -> None:
    """Print all faults, and exit with 1 where there are any."""
    archives = Path(sys.argv[1])
    faults = find_faults(ROOT, archives)
    print("\n".join(faults) or f"{len(list(archives.iterdir()))} archives hold what git has, and no more")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
