"""What a run computes in where its config leaves it open."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from flowfactory.config import loading
from flowfactory.config.precision import with_precision
from flowfactory.config.schema import RunConfig
from flowfactory.runs.train import train
from flowfactory.testing import two_parameter
from flowfactory.training.setup import prepare_run, slow_products
from flowfactory.types import Trainable

MATCH = Path(__file__).parents[1] / "toy_match.py"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))


def config(folder: Path, **training: object) -> RunConfig:
    return loading.validate(two_parameter.settings(folder, "match", [MATCH], training={"iterations": 1, **training}))


@pytest.mark.parametrize(
    ("written", "cuda", "found"),
    [("auto", True, "bf16"), ("auto", False, "float32"), ("float32", True, "float32"), ("bf16", False, "bf16")],
)
def test_auto_is_bf16_on_cuda_and_float32_on_a_cpu(tmp_path: Path, written: str, cuda: bool, found: str) -> None:
    assert with_precision(config(tmp_path, precision=written), cuda).training.precision == found


def test_a_run_saves_what_it_computed_in_and_resumes_with_auto(tmp_path: Path) -> None:
    chosen = config(tmp_path)
    assert chosen.training.precision == "auto"
    directory = train(chosen, say=lambda _: None)
    assert yaml.safe_load(directory.config.read_text())["training"]["precision"] == "float32"
    train(chosen, resume=True, say=lambda _: None)


def test_products_are_those_of_the_run_that_is_prepared(tmp_path: Path) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        prepare_run(config(tmp_path, matmul="high"))
        assert torch.get_float32_matmul_precision() == "high"
        prepare_run(config(tmp_path))
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_slow_products_of_a_large_transformer_are_told(tmp_path: Path) -> None:
    with torch.device("meta"):
        large, small = nn.Linear(20_000, 10_000), nn.Linear(20, 10)

    def told(module: nn.Module, **training: object) -> str | None:
        return slow_products(config(tmp_path, **training), Trainable({"it": module}, "full", (), (), "", guided=False))

    assert told(large, precision="float32") == (
        "training.precision: float32 is about ten times slower than bf16 on CUDA; write bf16, or training.matmul: high"
    )
    assert told(small, precision="float32") is None
    assert told(large, precision="float32", matmul="high") is None
    assert told(large, precision="bf16") is None
