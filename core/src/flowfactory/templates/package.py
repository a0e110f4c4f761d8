"""The package of a new plugin: its names, and its files from the templates."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from flowfactory.config.yaml import parse_yaml
from flowfactory.discovery.catalogue import CORE, Catalogue
from flowfactory.discovery.installed_version import installed_version
from flowfactory.errors import UserError
from flowfactory.suggestions import did_you_mean

FILES = Path(__file__).parent / "files"
IMPORTS = {
    "reward": ("pydantic", "torch"),
    "model": ("pydantic", "torch"),
    "algorithm": ("pydantic",),
    "dynamics": ("pydantic", "torch"),
    "tracker": ("pydantic",),
    "family": ("pydantic", "torch", "diffusers", "transformers"),
}
"""What each template imports besides core; core's own bounds are the package's. One a kind, and a model over a pipeline."""
KINDS = tuple(template for template in IMPORTS if template != "family")
LIBRARIES = {"diffusers": ">=0.42", "transformers": ">=5.14"}
"""The bounds of what core does not need."""
LONGEST = 30
"""Characters of a name."""


def write_package(kind: str, name: str, parent: Path, catalogue: Catalogue, family: bool = False) -> list[Path]:
    """The files written, of a package for a new component, in the new folder ``flowfactory-NAME`` of ``parent``.

    family: of a model over a pipeline of diffusers.
    UserError: there is no such kind; the name is no name, or is taken; the folder is there; or it cannot be written.
    """
    if kind not in KINDS:
        raise UserError(f"no template for a {kind!r}{did_you_mean(kind, KINDS)}")
    if family and kind != "model":
        raise UserError(f"--family is for a model over a pipeline of diffusers, not for a {kind}; leave it out")
    template = "family" if family else kind
    check_name(kind, name, catalogue, template)
    texts = package_texts(template, name)
    folder = parent / f"{CORE}-{name}"
    try:
        os.makedirs(parent, exist_ok=True)
        folder.mkdir()
    except FileExistsError as error:
        raise UserError(f"{folder} is there already; choose another name, or another folder with --out") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; choose another folder with --out") from error
    try:
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)  # which holds what was just written alone
        raise UserError(f"{folder} cannot be written: {error.strerror}; choose another folder with --out") from error
    return [folder / path for path in texts]


def check_name(kind: str, name: str, catalogue: Catalogue, template: str) -> None:
    """UserError: a distribution, a module or a component cannot have the ``name``, or one that is installed has it."""
    if not re.fullmatch("[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > LONGEST:
        plain = re.sub("[^a-z0-9]+", "-", name.lower().removeprefix(CORE)).strip("-0123456789")[:LONGEST].strip("-")
        meant = f"; did you mean {plain!r}?" if plain else ""
        told = f"up to {LONGEST} small letters and digits, which begin with a letter, with single hyphens between them"
        raise UserError(f"{name!r} is no name for a plugin: write {told}{meant}")
    if name == CORE or name.startswith(f"{CORE}-"):
        raise UserError(f"{name!r}: packages of plugins are called {CORE}-NAME anyway; leave {CORE}- out")
    if parse_yaml(f"name: {name}", name) != {"name": name}:
        raise UserError(f"{name!r} is no text in YAML, where configs write it; choose another name")
    if taken := _names_in_template(template) & {_title(name), f"{_title(name)}Config"}:
        raise UserError(f"{name!r}: its class would be called {taken.pop()}, as one of core's is; choose another name")
    distribution, module = f"{CORE}-{name}", module_name(name)
    for component in catalogue.found:
        if (component.kind, component.name) == (kind, name):
            raise UserError(f"{component.origin} brings a {kind} {name!r}; choose another name")
    if version := installed_version(distribution):
        raise UserError(f"{distribution} {version} is installed; choose another name")
    if find_spec(module) is not None:
        raise UserError(f"a module {module} is installed; choose another name")


def module_name(name: str) -> str:
    """``flowfactory_my_reward`` of ``my-reward``."""
    return f"{CORE}_{name.replace('-', '_')}"


def package_texts(template: str, name: str) -> Mapping[Path, str]:
    """The text of each file of a package, by its path in it."""
    texts = {}
    for root in (FILES, *([FILES / "model"] if template == "family" else []), FILES / template):
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            place = file.relative_to(root)
            is_cache = any(
                part.startswith((".", "__pycache__")) for part in place.parts
            )  # of tools that looked at them in place
            if not is_cache and (root != FILES or place.parts[0] not in IMPORTS):
                path = _fill(place.as_posix().replace("dot_", "."), name)
                texts[Path(path)] = _fill(file.read_text(encoding="utf-8"), name)
    project = Path("pyproject.toml")
    needed = "".join(f'  "{line}",\n' for line in requirements(template))
    texts[project] = texts[project].replace("dependencies = []", f"dependencies = [\n{needed}]", 1)
    return texts


def requirements(template: str) -> list[str]:
    """What a package of ``template`` requires: the present core, within whose X.Y no hook changes, and core's own bounds."""
    from packaging.requirements import Requirement

    own = [Requirement(line) for line in metadata.requires(CORE) or ()]
    bounds = LIBRARIES | {one.name: str(one.specifier) for one in own if one.marker is None}
    return [f"{CORE} {compatible_versions(metadata.version(CORE))}", *(f"{name}{bounds[name]}" for name in IMPORTS[template])]


def compatible_versions(present: str) -> str:
    """``~= 0.1.0`` of 0.1.3; with a version that is not released yet among them, where it is ``present``."""
    from packaging.version import Version

    version = Version(present)
    return f"~= {version.major}.{version.minor}.0{'.dev0' if version.is_prerelease else ''}"


def _fill(text: str, name: str) -> str:
    """``text`` of a template with ``newname`` in all its forms replaced."""
    forms = {"flowfactory_newname": module_name(name), "NewName": _title(name), "newname": name}
    return re.sub("|".join(forms), lambda found: forms[found[0]], text)


def _title(name: str) -> str:
    """``MyReward`` of ``my-reward``."""
    return "".join(word.capitalize() for word in name.split("-"))


def _names_in_template(template: str) -> set[str]:
    """What the code of a template calls things, which the new classes must not be called."""
    return {
        word
        for file in (FILES / template / "src").rglob("*.py")
        for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))
    }
