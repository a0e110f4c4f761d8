"""The benchmark of accelerators does all of its work on a CPU too, with tiny models: so that it works the day there is one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import accelerator
    finally:
        sys.path.remove(str(BENCHMARKS))
    return accelerator


def taken(benchmark: ModuleType, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(folder))  # put back after, where the step sets its own
    benchmark.take(name, tiny=True, out=folder / "found.json")
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(
    "name", ["FLUX.1-dev, GRPO", "Qwen-Image, NFT", "SD3.5-medium, GRPO", "Z-Image, GRPO", "Wan2.1-14B, GRPO"]
)
def test_an_iteration_of_each_model_is_timed(benchmark, name, tmp_path, monkeypatch):
    found = taken(benchmark, name, tmp_path, monkeypatch)
    assert found["seconds"] > 0
    assert found["forwards"] > 0


def test_ratios_are_one_by_batch_size_with_a_graph_and_without(benchmark, tmp_path, monkeypatch):
    found = taken(benchmark, "FLUX.1-dev, ratio", tmp_path, monkeypatch)
    deviations = [value for way in found.values() for by_size in way.values() for value in by_size.values()]
    assert len(deviations) == 2 * 2 * 2
    assert max(deviations) < 1e-6


def test_memory_is_held_beside_its_estimate(benchmark, tmp_path, monkeypatch):
    found = taken(benchmark, "FLUX.1-dev, memory", tmp_path, monkeypatch)
    assert all(size > 0 for size in found["estimated"].values())
    assert found["measured"] is None  # a CPU's allocator does not say


def test_optimizers_and_backends_are_timed_or_their_reason_is_kept(benchmark, tmp_path, monkeypatch):
    found = taken(benchmark, "FLUX.1-dev, optimizers", tmp_path, monkeypatch)
    assert found["adamw"]["seconds"] > 0
    assert found["adamw8bit"]["seconds"] > 0
    found = taken(benchmark, "FLUX.1-dev, attention", tmp_path, monkeypatch)
    assert found["native"]["seconds"] > 0
    assert "flash-attn" in found["flash"]["failed"]


def test_loading_and_checkpoints_are_timed(benchmark, tmp_path, monkeypatch):
    assert taken(benchmark, "SD3.5-medium, loading", tmp_path, monkeypatch)["gib"] > 0
    found = taken(benchmark, "FLUX.1-dev, checkpoints", tmp_path, monkeypatch)
    assert 0 < found["held_up"] <= found["written"]


def test_a_step_that_takes_too_long_leaves_its_reason(benchmark):
    assert benchmark.tried("FLUX.1-dev, GRPO", True, 0.5)["failed"] == "took more than 0 s"


def test_figures_are_written_step_by_step_and_say_what_there_was_no_time_for(benchmark, tmp_path):
    found = benchmark.measure(["FLUX.1-dev, GRPO"], True, 0.0, tmp_path / "found.json")
    assert found["steps"] == {"FLUX.1-dev, GRPO": {"failed": "no time was left"}}
    assert json.loads((tmp_path / "found.json").read_text()) == found
