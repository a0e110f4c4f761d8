from __future__ import annotations

import textwrap
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from flowfactory.discovery import written_for
from flowfactory.discovery.discover import discover
from flowfactory.errors import UserError

GLOW = textwrap.dedent("""
    from flowfactory import ComponentConfig, hookimpl

    class Config(ComponentConfig):
        def build(self, label):
            return object()

    @hookimpl
    def register_components(register):
        register("reward", "glow", Config)
    """)


@pytest.fixture
def glow(tmp_path: Path) -> Callable[[str], Path]:
    def write(head: str, rest: str = GLOW) -> Path:
        (tmp_path / "glow.py").write_text(head + rest)
        return tmp_path / "glow.py"

    return write


def declares(*requirements: str) -> str:
    lines = "".join(f'#   "{line}",\n' for line in requirements)
    return f"# /// script\n# dependencies = [\n{lines}# ]\n# ///\n"


def core(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written_for.metadata, "version", lambda name: version)


@pytest.mark.parametrize("head", ["", declares(), declares("rapidfuzz"), declares("flowfactory"), declares("flowfactory-x~=9")])
def test_a_file_that_asks_for_no_version_of_core_is_taken_as_it_is(head: str, glow: Callable[..., Path]) -> None:
    assert discover([glow(head)]).find("reward", "glow").misfit == ""


def test_a_file_for_this_version_is_taken(glow: Callable[..., Path]) -> None:
    head = declares("numpy", f"flowfactory ~= {metadata.version('flowfactory')}")
    assert discover([glow(head)]).find("reward", "glow").name == "glow"


@pytest.mark.parametrize(
    ("wants", "age", "newer"),
    [
        ("~=0.3.0", "newer", ""),
        ("==0.3.*", "newer", ""),
        ("~=0.1.0", "older", "get a newer glow.py, or "),
        ("<0.2", "older", "get a newer glow.py, or "),
    ],
)
def test_too_new_and_too_old_are_each_a_sentence_that_says_what_to_install(
    wants: str, age: str, newer: str, glow: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    core("0.2.1", monkeypatch)
    found = discover([glow(declares(f"flowfactory {wants}"))])
    with pytest.raises(UserError) as refused:
        found.find("reward", "glow")
    told = f"{'an' if age == 'older' else 'a'} {age} flowfactory ({wants}) than 0.2.1, which is installed"
    assert str(refused.value) == f"reward 'glow': glow.py is written for {told}; {newer}pip install 'flowfactory{wants}'"


def test_of_a_package_that_is_too_old_pip_gets_a_newer_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "ff_glow-1.2.3.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: ff-glow\nVersion: 1.2.3\nRequires-Dist: flowfactory~=0.1.0\n"
    )
    core("0.2.0", monkeypatch)
    assert written_for.package_misfit(metadata.Distribution.at(folder)) == (
        "ff-glow 1.2.3 is written for an older flowfactory (~=0.1.0) than 0.2.0, which is installed; "
        "pip install --upgrade ff-glow, or pip install 'flowfactory~=0.1.0'"
    )


def test_a_file_that_fails_says_also_that_it_is_for_another_version(glow: Callable[..., Path]) -> None:
    with pytest.raises(UserError) as refused:
        discover([glow(declares("flowfactory ~= 99.1.0"), "from flowfactory import no_such_name\n")])
    assert "ImportError" in str(refused.value)
    assert str(refused.value).endswith("; pip install 'flowfactory~=99.1.0'")


@pytest.mark.parametrize(
    "head",
    [
        "# /// script\n# dependencies = [\n# ///\n",
        declares("flowfactory ~= 99.0.0") * 2,
        "# /// script\n# dependencies = 3\n# ///\n",
    ],
)
def test_a_comment_that_cannot_be_read_keeps_nobody_from_a_run(head: str, glow: Callable[..., Path]) -> None:
    assert discover([glow(head)]).find("reward", "glow").misfit == ""
    with pytest.raises(UserError):
        written_for.script_requirements(head)
