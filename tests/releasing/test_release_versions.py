"""One version, stated once: what goes with it, and what is said of what does not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from release_versions import find_faults, package_folders, read_version, required

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("plugins/*/README.md")]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """What states versions, of this repository."""
    for folder in package_folders(ROOT):
        target = tmp_path / folder.relative_to(ROOT)
        (target / "src").mkdir(parents=True)
        shutil.copy(folder / "pyproject.toml", target)
    for file in ("VERSION", "CHANGELOG.md"):
        shutil.copy(ROOT / file, tmp_path)
    return tmp_path


def change(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_everything_goes_with_the_version() -> None:
    assert find_faults(ROOT, rehearsal=True) == []
    assert len(package_folders(ROOT)) == 20


def test_a_date_is_all_that_a_release_lacks(copied: Path) -> None:
    version = read_version(copied)
    text = (copied / "CHANGELOG.md").read_text()
    dated = re.sub(rf"^## {re.escape(version)} - .*$", f"## {version} - 2026-11-30", text, count=1, flags=re.MULTILINE)
    (copied / "CHANGELOG.md").write_text(dated)
    assert find_faults(copied) == []
    assert find_faults(copied, tag=f"v{version}") == []
    assert "the tag is v9.9.9" in find_faults(copied, tag="v9.9.9")[0]


@pytest.mark.parametrize("day", ["Unreleased", "2026-13-01", "30.11.2026"])
def test_no_release_without_a_day(copied: Path, day: str) -> None:
    (copied / "CHANGELOG.md").write_text(f"# Changelog\n\n## {read_version(copied)} - {day}\n")
    assert "YYYY-MM-DD" in find_faults(copied)[0]


@pytest.mark.parametrize(
    ("file", "before", "after", "told"),
    [
        ("VERSION", "0", "v0", "write X.Y.Z"),
        ("CHANGELOG.md", "## ", "## 99.", "begins with version 99"),
        ("core/pyproject.toml", 'dynamic = ["version"]', 'version = "0.1.0"', "core/pyproject.toml does not read its version"),
        ("core/pyproject.toml", "../VERSION", "VERSION", "core/pyproject.toml does not read its version"),
        ("flowfactory-wan/pyproject.toml", "[video] ~= ", "[video] ~= 7.", "requires 'flowfactory[video] ~= 7"),
        ("plugins/flowfactory-tiny/pyproject.toml", "flowfactory-nft ~= ", "flowfactory-nft >= ", "write 'flowfactory-nft ~="),
        ("plugins/flowfactory-dpo/pyproject.toml", '"flowfactory ~=', '"pluggy ~=', "requires no version of flowfactory"),
    ],
)
def test_what_does_not_go_with_the_version_is_named(copied: Path, file: str, before: str, after: str, told: str) -> None:
    change(copied / file, before, after)
    assert [fault for fault in find_faults(copied, rehearsal=True) if told in fault]


def test_all_packages_move_with_one_line(copied: Path) -> None:
    """To another patch version, which the requirements of one another allow."""
    first, second, third = read_version(copied).split(".")
    (copied / "VERSION").write_text(f"{first}.{second}.{int(third) + 1}\n")
    assert [fault.split(" ")[0] for fault in find_faults(copied, rehearsal=True)] == ["CHANGELOG.md"]


def test_what_packages_require_of_one_another_allows_patches_alone() -> None:
    assert [required(version) for version in ("0.1.0", "0.1.7", "2.3.4", "0.2.0rc1")] == [
        *("~= 0.1.0", "~= 0.1.0", "~= 2.3.0"),
        "~= 0.2.0rc1",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_show_authors_the_present_requirement(page: Path) -> None:
    found = re.findall(r"flowfactory(?:-[a-z-]+)? ?(~= ?\d[\w.]*)", page.read_text(encoding="utf-8"))
    assert set(found) <= {required(read_version(ROOT))}
