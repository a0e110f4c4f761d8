"""Whether what is installed here is the lowest that the packages declare, so that a test here has tried each bound."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from itertools import chain
from pathlib import Path

from release_versions import OURS, ROOT, package_folders

BOUND = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?\s*>=\s*([\d.]+)")


def declared_bounds(root: Path) -> dict[str, str]:
    """{dependency: lower bound}, of all packages and their extras. ValueError: one has none, or not that alone."""
    found = {}
    for folder in package_folders(root):
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for line in chain(project["dependencies"], *project.get("optional-dependencies", {}).values()):
            if OURS.fullmatch(line):
                continue
            bound = BOUND.fullmatch(line)
            if bound is None:
                raise ValueError(f"{folder.name} requires {line!r}; write a lower bound, such as {line.split('<')[0]}>=1.2")
            found[bound[1]] = bound[2]
    return found


def untried(bounds: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """A sentence for each bound below what is installed: no test here tries it."""
    return [
        f"{name}>={bound} is not tried: {installed[name]} is installed, which others need; declare it"
        for name, bound in bounds.items()
        if name in installed and not _begins(installed[name], bound)
    ]


def _begins(version: str, bound: str) -> bool:
    """Whether ``version`` is ``bound``, or the first of it that there is, such as 1.11.1 of 1.11."""
    numbers, wanted = (re.findall(r"\d+", text.partition("+")[0]) for text in (version, bound))
    return numbers[: len(wanted)] == wanted


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """{dependency: version}, of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            print(f"{name} is not installed, and not tried")
    return found


def main() -> None:
    """Print every bound that is not tried, and exit with 1 where there are any."""
    bounds = declared_bounds(ROOT)
    installed = installed_versions(bounds)
    faults = untried(bounds, installed)
    print("\n".join(faults) or f"{len(installed)} lower bounds are what is installed")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
