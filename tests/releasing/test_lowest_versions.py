"""Every dependency has a lower bound, and one that nothing tries is told of."""

from __future__ import annotations

from pathlib import Path

import pytest
from lowest_versions import declared_bounds, untried

ROOT = Path(__file__).parents[2]


def test_every_dependency_has_a_lower_bound() -> None:
    bounds = declared_bounds(ROOT)
    assert {"torch", "numpy", "protobuf", "rapidocr", "av"} <= bounds.keys()
    assert tuple(map(int, bounds["torch"].split("."))) >= (2, 8), "several ranks need FSDPModule.set_reshard_after_forward"


@pytest.mark.parametrize("line", ["protobuf", "protobuf<7", "protobuf==6.1", "protobuf>=6,<7"])
def test_what_has_no_lower_bound_alone_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "core/src").mkdir(parents=True)
    (tmp_path / "core/pyproject.toml").write_text(f'[project]\nname = "flowfactory"\ndependencies = ["{line}"]\n')
    with pytest.raises(ValueError, match="core requires 'protobuf"):
        declared_bounds(tmp_path)


def test_a_bound_below_what_is_installed_is_told_of() -> None:
    bounds = {"numpy": "1.26", "scipy": "1.11", "torch": "2.8", "safetensors": "0.5", "pillow": "11.3", "absent": "1"}
    installed = {"numpy": "1.26.0", "scipy": "1.11.1", "torch": "2.8.0+cu128", "safetensors": "0.8.0", "pillow": "11.30.0"}
    assert [sentence.split(" ")[0] for sentence in untried(bounds, installed)] == ["safetensors>=0.5", "pillow>=11.3"]
