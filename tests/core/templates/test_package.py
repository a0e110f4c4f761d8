"""Packages as ``plugins new`` writes them: what is in them, what their names may be, and that their own tests pass."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flowfactory.discovery.discover import discover
from flowfactory.errors import UserError
from flowfactory.templates.package import IMPORTS, LONGEST, compatible_versions, package_texts, write_package

ROOT = Path(__file__).parents[3]
Invoke = Callable[..., tuple[int, str, str]]


def install(package: Path, site: Path) -> None:
    """What ``pip install --target`` makes of a package without a network: its module, and what its pyproject.toml says."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    (module,) = (package / "src").iterdir()
    (site / module.name).symlink_to(module)
    info = site / f"{module.name}-{project['version']}.dist-info"
    info.mkdir()
    needed = "".join(f"Requires-Dist: {line}\n" for line in project["dependencies"])
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n{needed}")
    lines = "".join(f"{name} = {place}\n" for name, place in project["entry-points"]["flowfactory"].items())
    (info / "entry_points.txt").write_text(f"[flowfactory]\n{lines}")


def test_the_tests_of_every_kind_pass_once_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And ``plugins check`` finds nothing wrong, where there is no pytest."""
    site = tmp_path / "site"
    site.mkdir()
    for kind in IMPORTS:
        family = kind == "family"
        write_package("model" if family else kind, f"my-{kind}", tmp_path, discover(), family)
        install(tmp_path / f"flowfactory-my-{kind}", site)
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", ",".join(f"my-{kind}" for kind in IMPORTS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))
    folders = [f"flowfactory-my-{kind}" for kind in IMPORTS]
    options = ["-q", "--import-mode=importlib", "-p", "no:cacheprovider", "--rootdir=."]
    done = subprocess.run([sys.executable, "-m", "pytest", *options, *folders], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert "26 passed" in done.stdout
    without = "import sys; sys.modules['pytest'] = None; from flowfactory.cli.main import main; main()"
    checked = [sys.executable, "-c", without, "plugins", "check"]
    done = subprocess.run([*checked, "my-dynamics"], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "dynamics my-dynamics: in order\n", "")


def test_a_package_is_whole_and_every_place_has_the_name(tmp_path: Path, invoke: Invoke) -> None:
    code, out, _ = invoke("plugins", "new", "reward", "my-reward")
    assert code == 0
    *files, last = out.splitlines()
    assert sorted(files) == sorted(
        f"flowfactory-my-reward/{name}"
        for name in (
            *(".github/workflows/tests.yml", ".gitignore", "README.md", "pyproject.toml", "tests/test_reward.py"),
            *(f"src/flowfactory_my_reward/{module}.py" for module in ("__init__", "reward")),
        )
    )
    assert last.startswith("next: cd flowfactory-my-reward")
    for file in files:
        assert "newname" not in (tmp_path / file).read_text().lower()
    project = tomllib.loads((tmp_path / "flowfactory-my-reward/pyproject.toml").read_text())["project"]
    assert project["entry-points"]["flowfactory"] == {"my-reward": "flowfactory_my_reward"}
    needed = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    assert set(needed) == {"flowfactory", "pydantic", "torch"}
    assert needed["flowfactory"].contains(metadata.version("flowfactory"), prereleases=True)
    assert "class MyReward:" in (tmp_path / "flowfactory-my-reward/src/flowfactory_my_reward/reward.py").read_text()


@pytest.mark.parametrize("kind", IMPORTS)
def test_a_long_name_makes_no_long_line_and_no_name_is_left(kind: str) -> None:
    for path, text in package_texts(kind, "a-" + "b" * (LONGEST - 2)).items():
        if path.suffix == ".py":
            compile(text, str(path), "exec")
            assert max(len(line) for line in text.splitlines()) <= 128, path
    assert package_texts(kind, "newname-x")[Path("pyproject.toml")].count('"flowfactory-newname-x"') == 1


def test_the_rules_of_a_package_are_those_of_the_repository() -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    theirs = tomllib.loads(package_texts("reward", "glow")[Path("pyproject.toml")])["tool"]["ruff"]
    assert theirs["lint"]["select"] == ours["lint"]["select"]
    assert theirs["lint"]["ignore"] == ours["lint"]["ignore"]
    assert theirs["line-length"] == ours["line-length"]


def test_nothing_that_is_there_is_written_over(tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "flowfactory-glow").symlink_to(tmp_path / "nowhere")
    code, _, err = invoke("plugins", "new", "reward", "glow")
    told = "flowfactory-glow is there already; choose another name, or another folder with --out"
    assert (code, err) == (2, f"error: {told}\n")
    assert not (tmp_path / "nowhere").exists()
    assert invoke("plugins", "new", "reward", "glow", "--out", "deep/down")[0] == 0
    assert (tmp_path / "deep/down/flowfactory-glow/README.md").is_file()


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("family", "glow", "no template for a 'family'"),
        ("rewrad", "glow", "no template for a 'rewrad'; did you mean 'reward'?"),
        ("reward", "My_Reward", "did you mean 'my-reward'?"),
        ("reward", "3d", "did you mean 'd'?"),
        ("reward", "../glow", "is no name for a plugin"),
        ("reward", "glow-", "is no name for a plugin"),
        ("reward", "", "is no name for a plugin"),
        ("reward", "g" * (LONGEST + 1), "is no name for a plugin"),
        ("reward", "flowfactory-glow", "leave flowfactory- out"),
        ("reward", "null", "is no text in YAML"),
        ("algorithm", "loss", "its class would be called Loss"),
        ("model", "model", "its class would be called ModelConfig"),
        ("dynamics", "heun", "brings a dynamics 'heun'; choose another name"),
    ],
)
def test_a_name_that_cannot_be_is_refused(kind: str, name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        write_package(kind, name, tmp_path / "out", discover())
    assert told in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_the_name_of_a_distribution_or_a_module_that_is_installed_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flowfactory_aglow.py").touch()
    (tmp_path / "flowfactory_bglow-1.2.dist-info").mkdir()
    (tmp_path / "flowfactory_bglow-1.2.dist-info/METADATA").write_text("Name: flowfactory-bglow\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="a module flowfactory_aglow is installed"):
        write_package("reward", "aglow", tmp_path / "out", discover())
    with pytest.raises(UserError, match=r"flowfactory-bglow 1\.2 is installed"):
        write_package("reward", "bglow", tmp_path / "out", discover())


@pytest.mark.parametrize(
    ("present", "wanted"),
    [
        ("0.1.0", "~= 0.1.0"),
        ("0.2.7", "~= 0.2.0"),
        ("1.12.3", "~= 1.12.0"),
        ("0.3.0.dev2", "~= 0.3.0.dev0"),
        ("0.3.0rc1", "~= 0.3.0.dev0"),
    ],
)
def test_a_package_is_for_the_series_of_the_core_at_hand(present: str, wanted: str) -> None:
    assert compatible_versions(present) == wanted
    assert Requirement(f"flowfactory {wanted}").specifier.contains(present, prereleases=True)


def test_a_family_is_a_model_with_its_libraries_and_a_workflow_that_fits(tmp_path: Path, invoke: Invoke) -> None:
    assert invoke("plugins", "new", "model", "glow", "--family")[0] == 0
    folder = tmp_path / "flowfactory-glow"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    sd3 = tomllib.loads((ROOT / "plugins/flowfactory-sd3/pyproject.toml").read_text())["project"]
    assert {line for line in project["dependencies"] if "flowfactory" not in line} == {
        line for line in sd3["dependencies"] if "flowfactory" not in line
    }
    assert "plugins check glow --set path=checkpoint" in (folder / ".github/workflows/tests.yml").read_text()
    code, _, err = invoke("plugins", "new", "reward", "gleam", "--family")
    told = "--family is for a model over a pipeline of diffusers, not for a reward; leave it out"
    assert (code, err) == (2, f"error: {told}\n")
