from __future__ import annotations

from pathlib import Path

import pytest

from flowfactory.checkpoint_names import MANIFEST, lies_in_checkpoint, list_checkpoints
from flowfactory.config import warm_start


def test_a_run_is_started_from_at_its_last_checkpoint_and_what_is_none_is_passed_over(tmp_path: Path) -> None:
    for name in ("000002", "1000000", "000010", "0000011", "notes", ".writing-000012-0123456789abcdef"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"^the run directory {tmp_path} has no checkpoint yet$"):
        warm_start.pinned(tmp_path)
    for folder in (tmp_path / "checkpoints").iterdir():
        if folder.name != "1000000":
            (folder / MANIFEST).write_text("{}")
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["000002", "000010"]
    assert warm_start.pinned(tmp_path) == tmp_path / "checkpoints/000010"


@pytest.mark.parametrize(
    ("path", "lies"),
    [
        ("run/checkpoints/000002", True),
        ("run/checkpoints/1000000/transformer_2", True),
        ("run/checkpoints", False),
        ("run/checkpoints/0000011", False),
        ("checkpoints/2024-sft", False),
        ("run/000002", False),
    ],
)
def test_what_lies_in_a_checkpoint_is_told_by_its_path(path: str, lies: bool) -> None:
    assert lies_in_checkpoint(Path("/data") / path) == lies
