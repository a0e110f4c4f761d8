"""Which checkpoints a component names, declared or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from flowfactory import CheckpointPath, ComponentConfig
from flowfactory.config.checkpoint_licences import find_checkpoints, named_checkpoints
from flowfactory.discovery.discover import discover


class Declaring(ComponentConfig):
    checkpoint_licences: ClassVar[Mapping[str, str]] = {"org/model": "MIT", "weights, in the package": "Apache-2.0"}

    path: CheckpointPath = "org/model"
    other: CheckpointPath | None = None
    name_of_a_file: str = "folder/file"

    def build(self, label: str) -> object:
        return label


class Heir(Declaring):
    path: CheckpointPath = "org/other"


def test_what_is_declared_is_named_with_its_licence() -> None:
    assert named_checkpoints(Declaring) == {"org/model": "MIT", "weights, in the package": "Apache-2.0"}


def test_a_default_that_nobody_declares_is_named_all_the_same() -> None:
    """Another default than that of its base has another licence, which is not known."""
    assert named_checkpoints(Heir) == {"org/other": "see its page"}


PLUGIN = """
from flowfactory import CheckpointPath, ComponentConfig, hookimpl

class BlueConfig(ComponentConfig):
    path: CheckpointPath = "org/blue"
    def build(self, label):
        return self

@hookimpl
def register_components(register):
    register("reward", "blue", BlueConfig)
    register("reward", "gone", "no_such_module:Config")
"""


def test_a_component_that_cannot_be_loaded_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "blue.py").write_text(PLUGIN)
    found, failed = find_checkpoints(discover([tmp_path / "blue.py"]))
    [blue] = [each for each in found if each.component == "blue"]
    assert (blue.kind, blue.name, blue.licence) == ("reward", "org/blue", "see its page")
    assert blue.page == "https://huggingface.co/org/blue"
    assert [sentence for sentence in failed if "'gone'" in sentence]
