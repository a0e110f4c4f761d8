"""Whether everything goes with the version in ``VERSION``: ``… release_versions.py [--rehearsal] [--tag vX.Y.Z]``."""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterator
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OURS = re.compile(r"(flowfactory(?:-[a-z0-9-]+)?)(?:\[[\w,-]+\])?\s*(.*)")


def read_version(root: Path) -> str:
    """The version of all packages, which nothing else states."""
    return (root / "VERSION").read_text(encoding="utf-8").strip()


def package_folders(root: Path) -> list[Path]:
    """The folders of all packages: each has a ``pyproject.toml`` beside its ``src``."""
    return sorted(path.parent for path in root.glob("**/pyproject.toml") if (path.parent / "src").is_dir())


def find_faults(root: Path, rehearsal: bool = False, tag: str | None = None) -> list[str]:
    """A sentence for each place that does not go with ``VERSION``.

    rehearsal: the changelog may still say Unreleased. tag: what the release is to be tagged as, if that is known.
    """
    version = read_version(root)
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        return [f"VERSION says {version!r}; write X.Y.Z, or X.Y.ZrcN before a release"]
    faults = [fault for folder in package_folders(root) for fault in _package_faults(root, folder, version)]
    faults += _changelog_faults((root / "CHANGELOG.md").read_text(encoding="utf-8"), version, rehearsal)
    if tag is not None and tag != f"v{version}":
        faults.append(f"the tag is {tag}, and VERSION says {version}; tag v{version}, or set VERSION")
    return faults


def required(version: str) -> str:
    """What packages require of one another: within X.Y no hook changes."""
    first, second, *_ = version.split(".")
    return f"~= {first}.{second}.0" + "".join(re.findall(r"(?:a|b|rc)\d+", version))


def _package_faults(root: Path, folder: Path, version: str) -> Iterator[str]:
    stated: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    project, place = stated["project"], (folder / "pyproject.toml").relative_to(root)
    source = stated.get("tool", {}).get("hatch", {}).get("version", {}).get("path", "")
    if project.get("dynamic") != ["version"] or (folder / source).resolve() != (root / "VERSION").resolve():
        yield f"{place} does not read its version from VERSION; copy 'dynamic' and [tool.hatch.version] from its neighbour"
    for line in chain(project["dependencies"], *project.get("optional-dependencies", {}).values()):
        found = OURS.fullmatch(line)
        if found and found[1] != project["name"] and found[2] and found[2] != required(version):
            yield f"{place} requires {line!r}; write '{found[1]} {required(version)}'"
    of_ours = filter(None, map(OURS.fullmatch, project["dependencies"]))
    if project["name"] != "flowfactory" and not any(found[1] == "flowfactory" and found[2] for found in of_ours):
        yield f"{place} requires no version of flowfactory; add 'flowfactory {required(version)}' to its dependencies"


def _changelog_faults(changelog: str, version: str, rehearsal: bool) -> Iterator[str]:
    heading = re.search(r"^## (\S+) - (\S+)$", changelog, re.MULTILINE)
    if heading is None or heading[1] != version:
        latest = heading[1] if heading else "none"
        yield f"CHANGELOG.md begins with version {latest}; begin it with '## {version} - ' and the date"
    elif not (_is_date(heading[2]) or (rehearsal and heading[2] == "Unreleased")):
        yield f"CHANGELOG.md dates {version} {heading[2]!r}; write the day of the release as YYYY-MM-DD"


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def main() -> None:
    """Print all faults, and exit with 1 where there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearsal", action="store_true")
    parser.add_argument("--tag")
    given = parser.parse_args()
    faults = find_faults(ROOT, given.rehearsal, given.tag)
    print("\n".join(faults) or f"version {read_version(ROOT)}: {len(package_folders(ROOT))} packages and the changelog agree")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
