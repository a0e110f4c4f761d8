"""Blocks that are left out while samples are drawn: as diffusers does it, for each sample alone, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_wan
import torch
from diffusers.hooks import FirstBlockCacheConfig
from families import LORA, nudge, open_bench, relative_difference
from family_cases import CASES, NFT, Case, prompts
from torch import nn

from flowfactory import UserError
from flowfactory.config.loading import validate
from flowfactory.data.prompts import read_prompts
from flowfactory.flow.dynamics import FlowSDEConfig
from flowfactory.models.feature_cache import cached_blocks, use_feature_cache
from flowfactory.testing import Bench
from flowfactory.training.iteration import iterate
from flowfactory.training.plans import evaluation_plan, sampling_plan
from flowfactory.training.setup import prepare_run
from flowfactory.types import NoiseKey

Open = Callable[..., Bench]


@pytest.fixture
def bench(checkpoints: Callable[[str], Path], tmp_path: Path) -> Open:
    def opened(key: str, steps: int = 8, path: Path | None = None, **changes: Any) -> Bench:
        case = CASES[key]._replace(**changes)
        file = prompts(case, tmp_path)
        model = {"name": case.name, "path": str(path or checkpoints(key)), **case.options}
        config = validate(raw(model, file, case))
        return open_bench(config.model, tmp_path / "cache", read_prompts(file), case.size, steps, case.guidance)

    return opened


def raw(model: dict[str, Any], file: Path, case: Case, **sampling: Any) -> dict[str, Any]:
    height, width, *frames = case.size
    drawn = {"groups": 2, "group_size": 2, "size": [height, width], "steps": 8, "guidance": case.guidance, "dynamics": "ode"}
    return {
        "model": {"train": LORA, **model},
        "algorithm": NFT,
        "rewards": {"small": "jpeg-size"},
        "prompts": {"train": str(file)},
        "sampling": drawn | ({"frames": frames[0]} if frames else {}) | sampling,
        "training": {"iterations": 3, "batch_size": 2},
        "device": "cpu",
    }


def with_cache(made: Bench, threshold: float) -> Bench:
    return replace(made, plan=replace(made.plan, cache_threshold=threshold))


@contextmanager
def counted(made: Bench) -> Iterator[list[int]]:
    """How often each block of the transformers computed."""
    blocks = [block for module in made.policy.modules.values() for block in cached_blocks(module)]
    counts = [0] * len(blocks)

    def counting(place: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            counts[place] += 1
            return forward(*args, **kwargs)

        return run

    for place, block in enumerate(blocks):
        block.forward = counting(place, block.forward)
    yield counts
    for block in blocks:
        del block.forward


@contextmanager
def cached_by_diffusers(transformer: Any, threshold: float) -> Iterator[None]:
    transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    with transformer.cache_context("cond"):
        yield
    transformer.disable_cache()


# not flux2, z-image and sd3, whose blocks diffusers' own cache does not run with
@pytest.mark.parametrize(("key", "threshold"), [("flux1", 0.45), ("wan-t2v", 0.1), ("qwen-image", 0.3)])
def test_a_sample_alone_is_drawn_as_with_the_cache_of_diffusers(key: str, threshold: float, bench: Open) -> None:
    made = bench(key, **({} if key == "flux1" else {"guidance": 1.0}))
    one = replace(made, plan=made.plan.rows([0]), conditions=made.conditions.rows([0]))
    with counted(one) as counts:
        ours = with_cache(one, threshold).draw(1).latents
    assert counts[0] == 8
    assert 0 < min(counts) == max(counts[1:]) < 8
    with cached_by_diffusers(one.policy.modules["transformer"], threshold):
        theirs = one.draw(1).latents
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, one.draw(1).latents)


@pytest.mark.parametrize(
    ("key", "threshold"),
    [
        ("flux1", 0.3),
        ("flux2", 1.0),
        ("krea2", 1.0),
        ("qwen-image", 0.3),
        ("qwen-image-2.1", 0.3),
        ("z-image", 1.0),
        ("wan-i2v", 0.1),
        ("wan-flf2v", 0.1),
        ("flux2-klein", 1.0),
        ("lumina2", 1.0),
        ("sana", 1.0),
    ],
)
def test_what_a_sample_becomes_does_not_depend_on_who_is_drawn_beside_it(key: str, threshold: float, bench: Open) -> None:
    made = bench(key)
    nudge(made)
    plain, alone = made.draw(1).latents, with_cache(made, threshold).draw(1).latents
    with counted(made) as counts:
        together = with_cache(made, threshold).draw(2).latents
    assert relative_difference(together, alone) < 1e-5
    assert relative_difference(together, plain) > 1e-4, "nothing was left out"
    assert max(counts[1:]) <= counts[0]
    assert torch.equal(made.draw(1).latents, plain), "something is left of the cache"


@pytest.mark.parametrize("key", ["flux1", "qwen-image"])
def test_members_of_a_group_are_drawn_alike_alone_and_together_after_a_shared_prefix(key: str, bench: Open) -> None:
    made = bench(key)
    nudge(made)
    keys = tuple(NoiseKey(0, member) for member in range(3))
    window = frozenset({4})
    shared = replace(made.plan, keys=keys, starts=keys[:1] * 3, shares_prefix=True, stochastic=window)
    group = replace(made, plan=replace(shared, dynamics=FlowSDEConfig().build("sde")), conditions=made.conditions.rows([0] * 3))
    alone, together = (with_cache(group, 1e9).draw(size).latents for size in (1, 3))
    assert relative_difference(together, alone) < 1e-5
    assert relative_difference(together, group.draw(3).latents) > 1e-4, "nothing was left out"
    assert len(together.flatten(1).unique(dim=0)) == 3


def test_each_expert_of_wan_has_a_cache_of_its_own(bench: Open, tmp_path: Path) -> None:
    made = bench("wan-t2v", path=tiny_wan.text_to_video(tmp_path / "a14b", "a14b"))
    assert len(made.policy.modules) == 2
    with counted(made) as counts:
        with_cache(made, 1e9).draw(2)
    high, low = counts[:2], counts[2:]
    assert high[0] + low[0] == 8
    assert min(high[0], low[0]) > 1
    assert high[1] == low[1] == 1, "the first forward of each is whole, whatever the other has done"


def test_with_a_threshold_that_nothing_reaches_every_block_runs(bench: Open) -> None:
    made = bench("flux1")
    with counted(made) as counts:
        drawn = with_cache(made, 1e-9).draw(2).latents
    assert counts == [8] * len(counts)
    assert torch.equal(drawn, made.draw(2).latents)


def test_a_run_leaves_blocks_out_while_it_draws_to_learn_and_never_else(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    case = CASES["wan-t2v"]
    model = {"name": case.name, "path": str(checkpoints("wan-t2v"))}
    settings = raw(model, prompts(case, tmp_path), case, feature_cache={"name": "first-block", "threshold": 0.2})
    run = prepare_run(validate(settings | {"output": {"dir": str(tmp_path / "run")}}))
    run.assembly.hooks.run_started(run.info, run.policy)
    blocks = cached_blocks(run.policy.modules["transformer"])
    computed = {False: 0, True: 0}

    def note(block: nn.Module, *_: Any) -> None:
        computed[torch.is_grad_enabled()] += "forward" in vars(block)

    for block in blocks:
        block.register_forward_pre_hook(note)
    assert iterate(run, 0)["grad_norm"] > 0
    assert computed[False] > 0, "the blocks of a rollout are wrapped"
    assert computed[True] == 0, "those that learn are not"
    assert not any("forward" in vars(block) for block in blocks)
    assert sampling_plan(run.assembly, run.config, 0, ()).cache_threshold == 0.2
    assert evaluation_plan(run.assembly, run.config, ()).cache_threshold is None


def test_a_transformer_without_lists_of_blocks_is_refused() -> None:
    wanted = r"feature_cache: Linear has no list of blocks called transformer_blocks"
    with pytest.raises(UserError, match=wanted), use_feature_cache([nn.Linear(2, 2)], 0.1):
        pass
    with use_feature_cache([nn.Linear(2, 2)], None) as remembering, remembering("any"):
        pass
