"""A run directory that was moved or copied is continued where it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowfactory.config import loading
from flowfactory.config.schema import RunConfig
from flowfactory.runs.directory import RunDirectory

Invoke = Callable[..., tuple[int, str, str]]
Trained = Callable[..., RunDirectory]
TWO, THREE = {"training": {"iterations": 2}}, ("--set", "training.iterations=3")


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def iterations(folder: Path) -> list[int]:
    return [record["iteration"] for record in RunDirectory(folder).records(pytest.fail)]


def test_a_copy_is_continued_where_it_is_and_the_original_is_not_touched(
    trained: Trained, invoke: Invoke, tmp_path: Path
) -> None:
    original = trained(TWO, out="a").path
    before = content(original)
    shutil.copytree(original, tmp_path / "b")
    code, _, err = invoke("run", tmp_path / "b/config.yaml", "--resume", *THREE)
    assert (code, err) == (0, "")
    assert iterations(tmp_path / "b") == [0, 1, 2, 3]
    assert content(original) == before
    assert loading.load(tmp_path / "b/config.yaml").output.dir == tmp_path / "b"
    assert f"dir: {tmp_path / 'b'}\n" in (tmp_path / "b/config.yaml").read_text()


def test_what_was_moved_is_continued_where_it_is_also_through_a_link_and_from_within(
    trained: Trained, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trained(TWO, out="a").path
    original.rename(tmp_path / "moved")
    (tmp_path / "latest").symlink_to("moved")
    code, _, err = invoke("run", "latest/config.yaml", "--resume", *THREE)
    assert (code, err) == (0, "")
    monkeypatch.chdir(tmp_path / "moved")
    code, _, err = invoke("run", "config.yaml", "--resume", "--set", "training.iterations=4")
    assert (code, err) == (0, "")
    assert iterations(tmp_path / "moved") == [0, 1, 2, 3, 4]
    assert not original.exists()


def test_without_resume_it_already_holds_a_run(trained: Trained, invoke: Invoke, tmp_path: Path) -> None:
    original = trained(TWO, out="a").path
    original.rename(tmp_path / "moved")
    code, _, err = invoke("run", tmp_path / "moved/config.yaml")
    told = f"error: {tmp_path / 'moved'} already holds a run; continue it with --resume, or choose another --out\n"
    assert (code, err) == (2, told)
    assert not original.exists()


@pytest.mark.parametrize("by_hand", [("--out", "c"), ("--set", "output.dir=c")])
def test_a_place_that_is_given_by_hand_wins(trained: Trained, invoke: Invoke, tmp_path: Path, by_hand: tuple[str, str]) -> None:
    original = trained(TWO, out="a").path
    before = content(original)
    code, _, err = invoke("run", original / "config.yaml", *by_hand)
    assert (code, err) == (0, "")
    assert iterations(tmp_path / "c") == [0, 1, 2]
    assert content(original) == before


@pytest.mark.parametrize("without", ["run.json", "checkpoints"])
def test_a_run_directory_is_known_by_its_records_or_its_checkpoints(trained: Trained, tmp_path: Path, without: str) -> None:
    original = trained(TWO, out="a").path
    moved = original.rename(tmp_path / "moved")
    gone = moved / without
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert loading.load(moved / "config.yaml").output.dir == moved


@pytest.mark.parametrize(
    "beside",
    [["run.json"], ["metrics.jsonl"], ["checkpoints/flux/model.safetensors"], ["checkpoints/1/model.safetensors"]],
)
def test_a_config_that_a_user_wrote_beside_files_of_other_names_is_no_run_directory(
    config_file: Callable[..., Path], tmp_path: Path, beside: list[str], load: Callable[..., RunConfig]
) -> None:
    changes: dict[str, Any] = {"output": {"dir": "runs/mine"}}
    path = config_file(changes)
    for name in beside:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert loading.load(path).output.dir == tmp_path / "runs/mine"


WEIGHED = """
from pathlib import Path

import torch

from flowfactory import ComponentConfig, hookimpl
from flowfactory.config.paths import CheckpointPath


class WeighedConfig(ComponentConfig):
    path: CheckpointPath
    again: CheckpointPath = "somebody/weights"

    def check(self, run):
        if not Path(self.path, "weights").is_file():
            raise ValueError(f"there are no weights in {self.path}")

    def build(self, label):
        return Weighed(label, self.path)


class Weighed:
    def __init__(self, label, path):
        self.label, self.path = label, Path(path)

    @hookimpl
    def compute_reward(self, samples):
        return {self.label: torch.ones(len(samples.media)) * float((self.path / "weights").read_text())}


@hookimpl
def register_components(register):
    register("reward", "weighed", WeighedConfig)
"""


@pytest.fixture
def elsewhere(trained: Trained, toy: Path, tmp_path: Path) -> Path:
    """The copy of a run directory where the prompts and the weights of rewards that it trained with are no longer."""
    weights, plugin = tmp_path / "weights", tmp_path / "weighed.py"
    weights.mkdir()
    (weights / "weights").write_text("1")
    plugin.write_text(WEIGHED)
    weighed = {"name": "weighed", "path": str(weights)}
    directory = trained(
        {
            "training": {"iterations": 1},
            "rewards": {"bright": {"name": "bright"}, "weighed": {**weighed, "weight": 0.5}},
            "evaluation": {"rewards": {"other": weighed}},
            "plugins": [str(toy), str(plugin)],
        }
    )
    copy = Path(shutil.copytree(directory.path, tmp_path / "copy"))
    shutil.rmtree(weights)
    shutil.rmtree(tmp_path / "cache")
    for name in ("train.txt", "heldout.txt"):
        (tmp_path / name).unlink()
    return copy


def test_a_copy_is_drawn_with_and_exported_where_its_prompts_and_rewards_are_not(
    elsewhere: Path, invoke: Invoke, tmp_path: Path
) -> None:
    code, out, err = invoke("sample", elsewhere, "red")
    assert (code, out, err) == (0, f"{elsewhere / 'samples/drawn/000.png'}\n", "")
    code, out, err = invoke("export", elsewhere, tmp_path / "exported")
    assert (code, out, err) == (0, f"{tmp_path / 'exported'}\n", "")
    assert "weighed" in (tmp_path / "exported/README.md").read_text()


def test_a_copy_is_evaluated_with_the_held_out_prompts_and_the_rewards_alone(
    elsewhere: Path, invoke: Invoke, tmp_path: Path
) -> None:
    told = [f"prompts.heldout: no file {tmp_path / 'heldout.txt'}", f"there is no folder {tmp_path / 'weights'}"]
    code, _, err = invoke("eval", elsewhere)
    assert code == 2
    assert all(sentence in err for sentence in told)
    assert "prompts.train" not in err
    (tmp_path / "heldout.txt").write_text("black\norange\n")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/weights").write_text("1")
    code, out, err = invoke("eval", elsewhere)
    assert (code, err) == (0, "")
    assert json.loads(out)["eval/other/mean"] == 1


def test_a_run_needs_all_of_them(elsewhere: Path, invoke: Invoke, tmp_path: Path) -> None:
    code, _, err = invoke("run", elsewhere / "config.yaml", "--resume")
    assert code == 2
    assert f"prompts.train: no file {tmp_path / 'train.txt'}" in err
    assert f"there is no folder {tmp_path / 'weights'}" in err
