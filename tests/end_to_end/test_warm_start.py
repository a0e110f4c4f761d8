"""Training that starts from adapters which others saved, on whole transformers of every family."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from functools import cache as cache_calls
from pathlib import Path
from typing import Any

import pytest
import torch
from families import LORA, nudge, open_bench, relative_difference, train_two_iterations
from family_cases import CASES, GRPO, prompts
from safetensors.torch import load_file, save_file
from saved import stored

from flowfactory import UserError
from flowfactory.config.loading import validate
from flowfactory.data.prompts import read_prompts
from flowfactory.policy import REFERENCE
from flowfactory.runs.checkpoints.manifest import Manifest
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.export.adapters import FORMATS, write_formatted
from flowfactory.runs.export.origin import find_origin
from flowfactory.runs.resume import check_base
from flowfactory.testing import Bench

ROUNDING = 2e-5


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """The prompts of a case, written once: no two videos are encoded to the same bytes."""
    return cache_calls(lambda key: prompts(CASES[key], tmp_path))


@pytest.fixture
def configure(checkpoints: Callable[[str], Path], written: Callable[[str], Path]) -> Callable[..., Any]:
    def configured(key: str, lora: Mapping[str, Any]) -> Any:
        case = CASES[key]
        model = {"name": case.name, "path": str(checkpoints(key)), "train": {"lora": dict(lora)}, **case.options}
        sampling: dict[str, Any] = {"size": case.size[:2], "dynamics": "flow-sde"}
        sampling |= {"frames": case.size[2]} if len(case.size) > 2 else {}
        return validate(
            {
                "model": model,
                "algorithm": "grpo",
                "rewards": {"clip": "clip"},
                "prompts": {"train": str(written(key))},
                "sampling": sampling,
            }
        ).model

    return configured


@pytest.fixture
def make(configure: Callable[..., Any], cache: Path, written: Callable[[str], Path]) -> Callable[..., Bench]:
    def made(key: str, lora: Mapping[str, Any]) -> Bench:
        case = CASES[key]
        config = configure(key, lora)
        return open_bench(config, cache, read_prompts(written(key)), case.size, guidance=case.guidance)

    return made


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return relative_difference(one, other) < ROUNDING


@pytest.mark.parametrize("key", CASES)
def test_adapters_of_every_format_are_started_from_and_added_to_the_base(
    make: Callable[..., Bench], configure: Callable[..., Any], tmp_path: Path, key: str
) -> None:
    trained = make(key, LORA["lora"])
    fresh = trained.draw(2).latents
    nudge(trained)
    wanted = trained.draw(2).latents
    assert relative_difference(fresh, wanted) > 100 * ROUNDING
    model = configure(key, LORA["lora"])
    for form in (form for form in FORMATS if form != "comfyui" or model.family.comfyui):
        folder = tmp_path / form
        folder.mkdir()
        with stored(trained.policy) as modules:
            files = write_formatted(modules, folder, form, model, find_origin(model), "adapters")
        start = folder if form != "comfyui" else folder / files[0]
        begun = make(key, {"from": str(start)})
        assert same(begun.draw(2).latents, wanted), form
        begun.policy.keep_reference()
        nudge(begun)
        moved = begun.draw(2).latents
        assert relative_difference(moved, wanted) > 100 * ROUNDING
        with begun.policy.using(REFERENCE):
            assert same(begun.draw(2).latents, wanted), "the reference is what it started from"
    base = make(key, {"from": str(tmp_path / "diffusers"), "as": "base", "rank": 2})
    assert same(base.draw(2).latents, wanted)
    base.policy.keep_reference()
    nudge(base)
    with base.policy.using(REFERENCE):
        assert same(base.draw(2).latents, wanted)
    together, out = base.draw(2).latents, tmp_path / "together"
    out.mkdir()
    with stored(base.policy) as modules:
        write_formatted(modules, out, "diffusers", model, find_origin(model), "adapters")
    assert same(make(key, {"from": str(out)}).draw(2).latents, together), "an export has both"


def test_a_run_that_starts_from_anothers_checkpoint_has_it_as_the_reference_and_resumes(
    checkpoints: Callable[[str], Path], written: Callable[[str], Path], tmp_path: Path
) -> None:
    told: list[str] = []

    def run(folder: str, lora: Mapping[str, Any], resume: bool = False, **training: Any) -> RunDirectory:
        model = {"name": "flux1", "path": str(checkpoints("flux1")), "train": {"lora": dict(lora)}, **CASES["flux1"].options}
        sections = {"training": {"iterations": 2, **training}, "resume": resume, "sampling": {"size": [16, 16]}}
        return train_two_iterations(model, GRPO | {"kl": 0.1}, written("flux1"), tmp_path / folder, told.append, **sections)

    first = run("first", LORA["lora"])
    start = {"from": str(first.path)}
    whole = run("whole", start)
    records = whole.records()
    assert records[0]["eval/light/mean"] == pytest.approx(first.records()[-1]["eval/light/mean"], abs=1e-6)
    assert records[1]["kl"] == 0
    assert records[2]["kl"] > 0
    checkpoint = first.checkpoints / "000002"
    said = rf"training starts from adapters of rank 3 on \d+ layers from {checkpoint}, which are the reference"
    assert any(re.fullmatch(said, line) for line in told)
    run("stopped", start, iterations=1)
    resumed = run("stopped", start, resume=True)
    assert figures(resumed)[-1] == figures(whole)[-1]
    fused = run("fused", start | {"as": "base", "rank": 2})
    assert fused.load_config().model.train.lora.model_dump()["from"] == checkpoint, "a run directory may go on"
    before = Manifest.read(fused.checkpoints / "000002").fixed
    check_base(before, fused.load_config())
    factors = load_file(checkpoint / "pytorch_lora_weights.safetensors")
    save_file({name: 2 * value for name, value in factors.items()}, checkpoint / "pytorch_lora_weights.safetensors")
    with pytest.raises(UserError, match=r"the content of .* has changed since, and the run's weights go on what it was"):
        check_base(before, fused.load_config())
    shutil.rmtree(first.checkpoints / "000002")
    with pytest.raises(UserError, match=r"model\.train\.lora: from: the run directory .* has no checkpoint yet"):
        run("stopped", start, resume=True)


def figures(directory: RunDirectory) -> list[dict[str, Any]]:
    told = ("seconds/", "peak_memory")
    return [{key: value for key, value in record.items() if not key.startswith(told)} for record in directory.records()]
