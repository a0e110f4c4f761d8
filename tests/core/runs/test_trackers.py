from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from flowfactory.runs.directory import RunDirectory


def test_every_metric_is_a_scalar_in_the_event_file(trained: Callable[..., RunDirectory]) -> None:
    directory = trained({"output": {"trackers": ["tensorboard"]}})
    events = EventAccumulator(str(directory.path / "tensorboard"))
    events.Reload()
    records = directory.records()
    names = {name for record in records for name in record} - {"iteration"}
    assert set(events.Tags()["scalars"]) == names
    for name in names:
        told = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(record["iteration"], record[name]) for record in records if name in record]
        assert [step for step, _ in told] == [iteration for iteration, _ in expected]
        assert [value for _, value in told] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_without_tensorboard_the_run_is_refused_before_it_starts(
    config_file: Callable[..., Path],
    invoke: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    arguments = ("run", config_file({"output": {"trackers": ["tensorboard"]}}), "--out", tmp_path / "run")
    code, out, err = invoke(*arguments, "--dry-run")
    assert (code, out) == (2, "")
    assert err == "error: tracker 0: tracker 'tensorboard' needs: pip install 'flowfactory[tensorboard]'\n"
    assert not (tmp_path / "run").exists()
