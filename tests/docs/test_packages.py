"""What every package of the repository has in common."""

import re
import tomllib
from collections import defaultdict
from itertools import chain
from pathlib import Path

from flowfactory.discovery.discover import discover
from flowfactory.discovery.own_packages import OWN_PACKAGES

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("**/pyproject.toml") if (path.parent / "src").is_dir())


def test_every_package_brings_the_licence() -> None:
    """In its own folder, since a wheel and a source distribution hold no file from above it."""
    texts = {(package / "LICENSE").read_text() for package in PACKAGES}
    assert texts == {(ROOT / "LICENSE").read_text()}


def test_what_two_packages_require_has_one_lower_bound() -> None:
    """The lowest versions are tried together, so that a lower one in one package would never be tried."""
    bounds = defaultdict(set)
    for package in PACKAGES:
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        extras = project.get("optional-dependencies", {}).values()
        for written in chain(project["dependencies"], *extras):
            if found := re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])? ?(>=|~=) ?([\d.]+)", written):
                bounds[found[1].lower()].add(found[3])
    assert len(PACKAGES) == 20
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


def test_every_component_of_a_package_is_named_with_it_where_it_is_missing() -> None:
    brought: dict[str, dict[str, set[str]]] = {"model": {}, "algorithm": {}, "reward": {}}
    for component in discover([]).found:
        if component.kind in brought and component.distribution.startswith("flowfactory-"):
            brought[component.kind].setdefault(component.distribution, set()).add(component.name)
    known = {kind: {package: set(names) for package, names in packages.items()} for kind, packages in OWN_PACKAGES.items()}
    assert known == brought
