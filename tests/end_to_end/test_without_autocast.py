"""bf16 without autocast: the whole transformer in one dtype, ratios of one, and gradients that reach float32 adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import nudge
from family_cases import CASES, prompts

from flowfactory import Prompt
from flowfactory.config.component_slots import config_class
from flowfactory.config.schema import TrainingConfig
from flowfactory.discovery.discover import discover
from flowfactory.distributed.ranks import ALONE
from flowfactory.runs.estimate.stand_ins import cuda_autocast
from flowfactory.testing import Bench, bench


def made(key: str, folder: Path, cache: Path, told: Path, autocast: bool) -> Bench:
    case = CASES[key]
    kind: Any = config_class(discover([]).find("model", case.name))
    config = kind.model_validate({"path": str(folder), "train": {"lora": {"rank": 3, "alpha": 6}}, **case.options})
    texts = [Prompt(json.loads(line)["prompt"]) for line in prompts(case, told).read_text().splitlines()]
    found = bench(config, cache, texts[:1], case.size, 2, case.guidance, 2, precision=torch.bfloat16)
    nudge(found)
    found.policy.distribute(ALONE, TrainingConfig.model_validate({"autocast": autocast}))
    return found


@pytest.mark.parametrize("key", ["flux1", "wan-t2v"])
def test_the_transformer_computes_in_bf16_alone_and_replays_what_it_drew(
    key: str, checkpoints: Callable[[str], Path], cache: Path, tmp_path: Path
) -> None:
    with_it, without = (made(key, checkpoints(key), cache, tmp_path, autocast) for autocast in (True, False))
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for name, found in ((True, with_it), (False, without)):
        for block in found.policy.modules["transformer"].modules():
            if isinstance(block, torch.nn.LayerNorm):
                block.register_forward_hook(lambda _, given, result, name=name: seen[name].add(result.dtype))
    drawn = without.draw(2)
    with cuda_autocast():  # which leaves norms in float32, where a CPU's rounds them
        expected = with_it.draw(2)
    if key == "flux1":  # norms of Wan's class are float32 in themselves
        assert seen == {True: {torch.float32}, False: {torch.bfloat16}}
    apart = (drawn.latents - expected.latents).norm() / expected.latents.norm()
    assert 0 < float(apart) < 0.05  # as far as bf16 rounds
    step = drawn.steps[0]
    again = without.policy.evaluate(step).log_prob
    assert again is not None
    assert step.log_prob is not None
    assert torch.equal(again, step.log_prob)
    again.sum().backward()
    gradients = [weight.grad for weight in without.policy.parameters.values()]
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)
