"""Learning through the forwards that drew, against learning from replays of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from families import LORA
from family_cases import CASES, prompts
from torch import Tensor

from flowfactory.config.loading import validate
from flowfactory.errors import RunError, UserError
from flowfactory.training.drawn_batches import check_drawn_batches, drawn_batches, learned_batches
from flowfactory.training.iteration import collect_rollouts, iterate
from flowfactory.training.metrics import Timer
from flowfactory.training.preflight import preflight
from flowfactory.training.setup import Run, prepare_run
from flowfactory.training.update import losses

GUARD = {"name": "grpo-guard", "clip_range": 1e-2, "kl": 0.1}
Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def settings(checkpoints: Callable[[str], Path], tmp_path: Path) -> Settings:
    def made(key: str = "flux1", train: Any = "full", algorithm: Any = "grpo", **sections: Mapping[str, Any]) -> dict[str, Any]:
        case = CASES[key]
        raw: dict[str, Any] = {
            "model": {"name": case.name, "path": str(checkpoints(key)), "train": train, **case.options},
            "algorithm": algorithm,
            "rewards": {"small": "jpeg-size"},
            "prompts": {"train": str(prompts(case, tmp_path))},
            "sampling": {"groups": 2, "group_size": 4, "size": [16, 16], "steps": 3, "batch_size": 4, "dynamics": "flow-sde"},
            "training": {"iterations": 9, "batch_size": 4, "keep_graphs": True},
            "output": {"dir": str(tmp_path / "run")},
            "device": "cpu",
        }
        return raw | {section: raw.get(section, {}) | dict(values) for section, values in sections.items()}

    return made


def started(raw: dict[str, Any]) -> Run:
    run = prepare_run(validate(raw))
    run.assembly.hooks.run_started(run.info, run.policy)
    return run


def learned(raw: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, float]], list[int]]:
    """The weights after three iterations, their metrics, and the forwards of the last without a graph and with one."""
    run = started(raw)
    forwards = [0, 0]

    def count(*_: object) -> None:
        forwards[torch.is_grad_enabled()] += 1

    records = [iterate(run, iteration) for iteration in range(2)]
    run.policy.modules["transformer"].register_forward_pre_hook(count)
    records.append(iterate(run, 2))
    return {name: weight.detach().clone() for name, weight in run.policy.parameters.items()}, records, forwards


@pytest.mark.parametrize(
    ("train", "algorithm", "changes"),
    [
        (LORA, "grpo", {}),
        ("full", GUARD, {"training": {"activation_checkpointing": "every-2", "kept_on": "host"}}),
        (LORA, {"name": "grpo", "kl": 0.1}, {"sampling": {"keep_on": "host", "keep_as": "bf16"}}),
    ],
    ids=["lora", "full-guard-kl-checkpointed", "lora-kl-host"],
)
def test_three_iterations_are_those_of_replays_to_the_bit_with_a_forward_fewer_a_recorded_step(
    train: Any, algorithm: Any, changes: dict[str, Any], settings: Settings
) -> None:
    raw = settings("flux1", train, algorithm)
    raw = raw | {section: raw[section] | values for section, values in changes.items()}
    weights, records, forwards = learned(raw)
    others, replayed, more = learned(raw | {"training": raw["training"] | {"keep_graphs": False}})
    assert all(torch.equal(weights[name], others[name]) for name in others)
    assert all(record["grad_norm"] > 0 for record in records)
    for now, then in zip(records, replayed, strict=True):
        told = {key for key in then if not key.startswith(("seconds/", "peak_memory"))}
        assert {key: now[key] for key in told} == {key: then[key] for key in told}
    batches, steps, recorded = 2, 3, 2
    assert more[1] - forwards[1] == 0, "as many graphs"
    assert more[0] - forwards[0] == batches * recorded
    assert forwards[1] == batches * recorded
    assert forwards[0] >= batches * (steps - recorded)


def test_guidance_and_texts_of_other_lengths_have_graphs_too(settings: Settings) -> None:
    raw = settings("qwen-image", LORA, sampling={"guidance": 4.0, "groups": 3, "batch_size": 4})
    weights, _, _ = learned(raw)
    others, _, _ = learned(raw | {"training": raw["training"] | {"keep_graphs": False}})
    assert all(torch.equal(weights[name], others[name]) for name in others)


def test_preflight_replays_and_leaves_the_graphs_to_the_update(settings: Settings) -> None:
    run = started(settings("flux1", LORA))
    rollouts = collect_rollouts(run, 0, Timer(run.policy.device))
    told = list(preflight(rollouts, run.policy, run.assembly.hooks, run.config))
    assert any("replaying 2 recorded steps gives a ratio of 1" in sentence for sentence in told)
    assert len(run.policy.drawn_graphs.held) == 4
    assert len(list(losses(run, rollouts, range(8), 0))) == 4
    assert not run.policy.drawn_graphs.held


def test_steps_that_nothing_learned_from_are_an_error(settings: Settings) -> None:
    run = started(settings("flux1", LORA))
    rollouts = collect_rollouts(run, 0, Timer(run.policy.device))
    with pytest.raises(RunError, match=r"does not learn from 2 of the steps that were drawn with their graphs; leave"):
        list(losses(run, rollouts, range(4), 0))


@pytest.mark.parametrize(
    ("groups", "group_size", "batch_size", "ranks", "same"),
    [
        (2, 4, 4, 1, True),
        (2, 4, 8, 1, True),
        (2, 4, 16, 1, True),
        (48, 16, 8, 8, True),
        (2, 4, 3, 1, False),
        (2, 4, 4, 2, True),
        (3, 4, 4, 2, False),
        (4, 24, 8, 2, False),
    ],
)
def test_batches_that_are_drawn_are_those_that_are_learned_from(
    groups: int, group_size: int, batch_size: int, ranks: int, same: bool, settings: Settings
) -> None:
    sizes = {"groups": groups, "group_size": group_size, "batch_size": batch_size}
    config = validate(settings("flux1", sampling=sizes, training={"batch_size": batch_size}))
    assert (drawn_batches(config, ranks) == learned_batches(config, ranks)) == same
    if same:
        check_drawn_batches(config, ranks)
    else:
        with pytest.raises(UserError, match=r"training.keep_graphs: .* other batches than they are learned from; choose"):
            check_drawn_batches(config, ranks)
