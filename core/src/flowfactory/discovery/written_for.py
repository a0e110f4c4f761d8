"""The versions of core that a plugin declares it was written for, and what to install where the one at hand is none of them.

A package declares them as it does all that it needs: by its requirement on ``flowfactory``, such as ``flowfactory ~= 0.1.0``. A
one-file plugin may write the same line into a comment that Python's packaging defines for scripts (PEP 723)::

    # /// script
    # dependencies = ["flowfactory ~= 0.1.0"]
    # ///

Whoever declares nothing is taken as it is. Within 0.1 hooks do not change, so that no other number is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from flowfactory.discovery.catalogue import CORE
from flowfactory.errors import UserError

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

# the reference implementation's, https://packaging.python.org/en/latest/specifications/inline-script-metadata
_BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
_NAMES_CORE = re.compile(rf"{CORE}(?![\w.-])")


def package_misfit(distribution: metadata.Distribution) -> str:
    """Why ``distribution`` does not go with the core that is installed, and what to install; "" where it does."""
    wanted = core_requirements(distribution.requires or ())
    own = f"{distribution.name} {distribution.version}"
    return _misfit(own, wanted, f"pip install --upgrade {distribution.name}")


def file_misfit(name: str, source: str) -> str:
    """Why a one-file plugin does not go with the core that is installed; "" where it does, or declares nothing that is read."""
    try:
        wanted = core_requirements(script_requirements(source))
    except UserError:
        return ""  # a comment keeps nobody from a run; plugins check tells
    return _misfit(name, wanted, f"get a newer {name}")


def script_requirements(source: str) -> Sequence[str]:
    """What the comment of a one-file plugin declares that it needs; empty without one. UserError: it cannot be read."""
    blocks = _BLOCK.findall(source.replace("\r\n", "\n")) if "# /// script" in source else []
    if not blocks:
        return ()
    import tomllib

    if len(blocks) > 1:
        raise UserError("has several comments '# /// script'; write all dependencies into one")
    lines = (line[2:] if line.startswith("# ") else line[1:] for line in blocks[0][0].splitlines())
    try:
        needed = tomllib.loads("\n".join(lines)).get("dependencies", [])
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"its comment '# /// script' is not TOML: {error}") from error
    if not isinstance(needed, list) or not all(isinstance(line, str) for line in needed):
        raise UserError("its comment '# /// script' has dependencies that are no list of texts")
    return needed


def core_requirements(lines: Iterable[str]) -> list[Requirement]:
    """Those of requirement ``lines`` that are on core, and count on this machine."""
    named = [line for line in lines if _NAMES_CORE.match(line)]
    if not named:
        return []  # without importing packaging
    from packaging.requirements import InvalidRequirement, Requirement

    found = []
    for line in named:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            found.append(wanted)
    return found


def _misfit(own: str, wanted: Iterable[Requirement], newer_plugin: str) -> str:
    present = metadata.version(CORE)
    for requirement in wanted:
        versions = requirement.specifier
        if not versions.contains(present, prereleases=True):
            other = f"pip install '{CORE}{versions}'"
            if _is_too_new_for(versions, present):
                return f"{own} is written for a newer flowfactory ({versions}) than {present}, which is installed; {other}"
            told = f"{own} is written for an older flowfactory ({versions}) than {present}, which is installed"
            return f"{told}; {newer_plugin}, or {other}"
    return ""


def _is_too_new_for(versions: SpecifierSet, present: str) -> bool:
    """Whether ``versions``, of which ``present`` is none, begin above it."""
    from packaging.version import Version

    lowest = [Version(one.version.removesuffix(".*")) for one in versions if one.operator in ("~=", ">=", ">", "==", "===")]
    return any(version > Version(present) for version in lowest)


def undeclared(distributions: Iterable[str], files: Iterable[Path]) -> dict[str, str]:
    """What is wrong with how plugins declare the core they are for: of a package that does not, of a comment that is torn."""
    told = {}
    for name in sorted(set(distributions) - {CORE}):
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # a file
        if not any(requirement.specifier for requirement in core_requirements(found.requires or ())):
            series = ".".join(metadata.version(CORE).split(".")[:2])
            told[f"package {name}"] = f"says not which {CORE} it is for; add '{CORE} ~= {series}.0' to its dependencies"
    for file in files:
        try:
            script_requirements(file.read_text(encoding="utf-8", errors="replace"))
        except UserError as error:
            told[f"plugin {file.name}"] = str(error)
    return told
