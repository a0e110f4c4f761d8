"""Of all prompts, an iteration reads its own, whatever their number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flowfactory.config.schema import RunConfig
from flowfactory.data import batches
from flowfactory.data.cache_folder import CacheFolder
from flowfactory.training.evaluation import evaluate
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.setup import Run, prepare_run
from flowfactory.types import Prompt

Load = Callable[..., RunConfig]
Begin = Callable[[int], Run]
CPU = torch.device("cpu")
COMPARED = 16  # prompts whose conditions are compared when a run starts


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each entry is read."""
    found: Counter[str] = Counter()
    read = CacheFolder.read

    def count(folder: CacheFolder, key: str) -> bytes | None:
        found[key] += 1
        return read(folder, key)

    monkeypatch.setattr(CacheFolder, "read", count)
    return found


@pytest.fixture
def begin(load: Load, reads: Counter[str], tmp_path: Path) -> Callable[[int], Run]:
    """``begin(count)`` is a run with so many prompts, all encoded, and four groups an iteration."""

    def make(count: int) -> Run:
        config = load({"training": {"iterations": 5}, "prompts": {"heldout": None}})
        (tmp_path / "train.txt").write_text("".join(f"prompt {number}\n" for number in range(count)))
        run = prepare_run(config)
        assert reads.total() == COMPARED
        run.sampler.conditions((), 1, config.sampling.canvas)  # so that nothing is held
        reads.clear()
        return run

    return make


@pytest.mark.parametrize("prompts", [40, 400])
def test_the_entries_that_are_read_are_those_of_the_iterations(prompts: int, reads: Counter[str], begin: Begin) -> None:
    run = begin(prompts)
    for iteration in range(5):
        collect_rollouts(run, iteration, Timer(CPU))
    assert reads.total() == 5 * 4


def test_held_out_prompts_are_read_piece_by_piece(reads: Counter[str], begin: Begin) -> None:
    run = begin(40)
    sizes = []
    sampler = run.sampler
    conditions = type(sampler).conditions

    def count(*arguments: object) -> object:
        before = reads.total()
        found = conditions(*arguments)  # type: ignore[arg-type]
        sizes.append(reads.total() - before)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(sampler), "conditions", count)
        evaluate(sampler, run.assembly, run.config, run.train[:32], members=1, score=False)
    assert sizes == [8] * 4  # as many as are drawn at once


def test_what_draws_alone_reads_what_it_draws(reads: Counter[str], load: Load, tmp_path: Path) -> None:
    config = load()
    (tmp_path / "train.txt").unlink()
    (tmp_path / "heldout.txt").unlink()
    wanted = [Prompt("a cat")]
    run = prepare_run(config, scores=False, trains=False, drawn=wanted)
    assert len(CacheFolder(tmp_path / "cache").entries()) == 1
    evaluate(run.sampler, run.assembly, run.config, wanted, 1, score=False)
    assert set(reads.values()) == {1}
    assert len(reads) == 1


def test_the_order_of_the_prompts_is_drawn_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, randperm = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *given, **more: drawn.append(given) or randperm(*given, **more))
    prompts = [Prompt("x", number) for number in range(101)]
    seen = [prompt.index for iteration in range(25) for prompt in batches.prompts_of_iteration(prompts, iteration, 8, seed=97)]
    assert len(drawn) == 2  # 200 of 202
    assert sorted(seen[:101]) == list(range(101))
    assert len({*seen[101:]}) == 99
