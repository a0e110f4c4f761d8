"""What a package's archives must and must not hold, with archives that hatchling builds."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from release_archives import archive_faults, find_faults
from release_versions import read_version

ROOT = Path(__file__).parents[2]
VERSION = read_version(ROOT)
NAME, STEM = "flowfactory-dpo", f"flowfactory_dpo-{VERSION}"


def hatchling(folder: Path, *options: str) -> None:
    subprocess.run([sys.executable, "-m", "hatchling", "build", *options], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small package, and where its version stands."""
    clone = tmp_path_factory.mktemp("clone")
    package = clone / "plugins" / NAME
    shutil.copytree(ROOT / "plugins" / NAME, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "VERSION", clone)
    (clone / ".gitignore").write_text("__pycache__/\n")
    return clone


@pytest.fixture(scope="module")
def tracked(clone: Path) -> dict[str, bytes]:
    package = clone / "plugins" / NAME
    return {path.relative_to(package).as_posix(): path.read_bytes() for path in package.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def archives(clone: Path, tracked: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, beside which nothing of the clone is, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    cache = clone / "plugins" / NAME / "src/flowfactory_dpo/__pycache__"
    cache.mkdir()
    (cache / "left.pyc").write_bytes(b"of an earlier run")
    hatchling(clone / "plugins" / NAME, "-t", "sdist", "-d", str(folder))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with tarfile.open(folder / f"{STEM}.tar.gz") as opened:
        opened.extractall(elsewhere, filter="data")
    hatchling(elsewhere / STEM, "-t", "wheel", "-d", str(folder))
    return folder


@pytest.mark.parametrize("name", [f"{STEM}.tar.gz", f"{STEM}-py3-none-any.whl"])
def test_an_archive_holds_what_git_has(archives: Path, tracked: dict[str, bytes], name: str) -> None:
    assert archive_faults(archives / name, tracked, NAME, VERSION) == []
    assert "src/flowfactory_dpo/dpo.py" in tracked


@pytest.mark.parametrize("name", [f"{STEM}.tar.gz", f"{STEM}-py3-none-any.whl"])
def test_what_an_archive_lacks_or_changes_is_named(archives: Path, tracked: dict[str, bytes], name: str) -> None:
    other = tracked | {"src/flowfactory_dpo/new.py": b"", "src/flowfactory_dpo/dpo.py": b"changed"}
    del other["src/flowfactory_dpo/dgpo.py"]
    prefix = "" if name.endswith("whl") else "src/"
    assert archive_faults(archives / name, other, NAME, VERSION) == [
        f"lacks {prefix}flowfactory_dpo/new.py",
        f"holds {prefix}flowfactory_dpo/dgpo.py, which git does not",
        f"holds another {prefix}flowfactory_dpo/dpo.py",
    ]


def test_a_stray_file_in_a_wheel_is_named(archives: Path, tracked: dict[str, bytes], tmp_path: Path) -> None:
    wheel = Path(shutil.copy(archives / f"{STEM}-py3-none-any.whl", tmp_path))
    with zipfile.ZipFile(wheel, "a") as opened:
        opened.writestr("tests/test_dpo.py", "")
    assert archive_faults(wheel, tracked, NAME, VERSION) == ["holds tests/test_dpo.py, which git does not"]


def test_a_requirement_that_the_index_refuses_is_named(tracked: dict[str, bytes], tmp_path: Path) -> None:
    written = f"Name: {NAME}\nVersion: {VERSION}\nLicense-Expression: Apache-2.0\nRequires-Python: >=3.11\n"
    archive = tmp_path / f"{STEM}.tar.gz"
    files = tracked | {"PKG-INFO": f"{written}Requires-Dist: flowfactory @ file:///core\n\n".encode()}
    with tarfile.open(archive, "w:gz") as opened:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{STEM}/{name}")
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    assert archive_faults(archive, tracked, NAME, VERSION) == [
        "has no description for its page on the index",
        "requires 'flowfactory @ file:///core'; name a version",
    ]


def test_a_missing_and_a_foreign_archive_are_named(archives: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(ROOT / "plugins" / NAME, root / NAME, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "VERSION", root)
    git = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    subprocess.run(["git", "init", "-q"], cwd=root, check=True, env=git)
    subprocess.run(["git", "add", "."], cwd=root, check=True, env=git)
    folder = Path(shutil.copytree(archives, tmp_path / "dist"))
    assert find_faults(root, folder) == []
    (folder / f"{STEM}.tar.gz").rename(folder / "flowfactory_dpo-0.0.1.tar.gz")
    assert find_faults(root, folder) == [
        f"{STEM}.tar.gz: is missing",
        f"flowfactory_dpo-0.0.1.tar.gz: is of no package at version {VERSION}; delete it",
    ]
