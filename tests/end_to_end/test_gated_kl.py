"""A KL with a gate and with a reference that is taken anew, of every algorithm that has one, on the two-parameter bench."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import testing
from flowfactory.checkpoint_names import list_checkpoints
from flowfactory.config.component import AlgorithmConfig
from flowfactory.config.loading import validate
from flowfactory.errors import RunError, UserError
from flowfactory.flow import FlowSDEConfig
from flowfactory.policy import KL_REFERENCE
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.estimate.estimate import estimate
from flowfactory.runs.train import train
from flowfactory.testing import Learning, two_parameter
from flowfactory.testing.by_hand import NoisedByHand, autograd_by_hand, step_by_hand
from flowfactory_awm.awm import AWMConfig
from flowfactory_awm.rvm import RVMConfig
from flowfactory_crd.crd import CRDConfig
from flowfactory_dpo.dgpo import DGPOConfig
from flowfactory_grpo.dppo import DPPOConfig
from flowfactory_grpo.flash_grpo import FlashGRPOConfig
from flowfactory_grpo.grpo import GRPOConfig
from flowfactory_grpo.grpo_guard import GRPOGuardConfig
from flowfactory_nft.nft import NFTConfig
from flowfactory_nft.vgrpo import VGRPOConfig

START, MOVED = (0.3, -0.2), (0.36, -0.25)
ADVANTAGES = (1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 2.0, -2.0)
GATE = torch.tensor([True, False, False, True, False, True, False, False])
WEIGHT = 0.3
COUPLED: list[Any] = [GRPOConfig, GRPOGuardConfig, DPPOConfig, FlashGRPOConfig]
DECOUPLED: list[Any] = [NFTConfig, AWMConfig, CRDConfig, DGPOConfig, VGRPOConfig, RVMConfig]
GATED = {"coefficient": WEIGHT, "gate": {"share": 0.375}}
TIMES = {"name": "uniform", "count": 2}
AWM = {"name": "awm", "clip_range": 1e-4, "advantage_scale": 1, "ema_kl": 0, "timesteps": TIMES}
GRPO = {"name": "grpo", "clip_range": 0.05}
UNTIMED = ("seconds/", "peak_memory_mb", "reward/watched")

WATCHED = """
from flowfactory import ComponentConfig, hookimpl


class WatchedConfig(ComponentConfig):
    def build(self, label):
        return Watched(label)


class Watched:
    def __init__(self, label):
        self.label = label

    @hookimpl
    def compute_reward(self, samples):
        return {self.label: samples.media.flatten(1)[:, 0]}


@hookimpl
def register_components(register):
    register("reward", "watched", WatchedConfig)
"""

pytestmark = pytest.mark.usefixtures("own_cache")


def learn(config: type[AlgorithmConfig], kl: Any, **options: Any) -> Learning:
    dynamics: Any = FlowSDEConfig().build("dynamics") if config in COUPLED else testing.ODE()
    run = testing.learning(config.model_validate({"kl": kl, **options}), ADVANTAGES, START, 4, dynamics, 8, 1)
    run = replace(run, experience=replace(run.experience, kl_gate=GATE))
    run.move_to(*MOVED)
    return run


# the gate in the losses


@pytest.mark.parametrize("config", [*COUPLED, *DECOUPLED])
def test_samples_outside_the_gate_learn_as_without_a_kl_and_those_inside_as_with_it(config: Any) -> None:
    gated, whole, none = (learn(config, kl) for kl in (GATED, WEIGHT, 0))
    for loss, penalised, free in zip(gated.losses(), whole.losses(), none.losses(), strict=True):
        assert torch.equal(loss.terms["kl"], penalised.terms["kl"]), "the term is told of all samples"
        inside = GATE.repeat(len(loss.values) // len(GATE))
        assert torch.equal(loss.values, torch.where(inside, penalised.values, free.values))
        assert not torch.equal(penalised.values[inside], free.values[inside])
        expected = torch.where(inside[:, None], whole.gradients(penalised.values), none.gradients(free.values))
        torch.testing.assert_close(gated.gradients(loss.values), expected)


def penalty(loss: Any, free: Any, run: Learning, other: Learning) -> tuple[Tensor, Tensor]:
    """What the KL adds to each loss, and to its gradient."""
    return (loss.values - free.values).double(), run.gradients(loss.values) - other.gradients(free.values)


def test_the_gated_kl_of_velocities_is_that_worked_out_by_hand() -> None:
    gated, none = learn(NFTConfig, GATED, timesteps=TIMES), learn(NFTConfig, 0, timesteps=TIMES)
    places = gated.noised_batches(NFTConfig.model_validate({"timesteps": TIMES}).timesteps)
    for at, loss, free in zip(places, gated.losses(), none.losses(), strict=True):
        hand, inside = NoisedByHand(at), GATE.double()
        values, gradients = penalty(loss, free, gated, none)
        torch.testing.assert_close(values, WEIGHT * inside * hand.distance(MOVED, START), rtol=1e-3, atol=1e-6)
        slope = autograd_by_hand(lambda w, hand=hand, inside=inside: WEIGHT * inside * hand.distance(w, START), MOVED)
        torch.testing.assert_close(gradients, slope, rtol=1e-3, atol=1e-5)


def test_the_gated_kl_of_gaussian_steps_is_that_worked_out_by_hand() -> None:
    gated, none = learn(GRPOConfig, GATED), learn(GRPOConfig, 0)
    for step, loss, free in zip(gated.experience.steps, gated.losses(), none.losses(), strict=True):
        hand, inside = step_by_hand(step, "flow-sde", FlowSDEConfig().noise_level), GATE.double()
        values, gradients = penalty(loss, free, gated, none)
        torch.testing.assert_close(values, WEIGHT * inside * hand.divergence(MOVED, START), rtol=1e-3, atol=1e-6)
        slope = autograd_by_hand(lambda w, hand=hand, inside=inside: WEIGHT * inside * hand.divergence(w, START), MOVED)
        torch.testing.assert_close(gradients, slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("config", [*COUPLED, *DECOUPLED])
def test_a_reference_that_is_taken_anew_is_where_training_started_until_then(config: Any) -> None:
    kept, started = learn(config, {"coefficient": WEIGHT, "refresh": {}}), learn(config, WEIGHT)
    for loss, other in zip(kept.losses(), started.losses(), strict=True):
        assert torch.equal(loss.values, other.values)
    assert kept.weights(KL_REFERENCE) == pytest.approx(START)
    kept.policy.update_ema(KL_REFERENCE, 0.0)
    assert all(not loss.terms["kl"].any() for loss in kept.losses())
    assert kept.weights(KL_REFERENCE) == pytest.approx(MOVED)


def test_what_else_is_measured_from_the_start_stays_there_when_the_reference_is_taken_anew() -> None:
    run = learn(DGPOConfig, {"coefficient": WEIGHT, "refresh": {}}, norm_guard=0.5)
    before = [loss.metrics for loss in run.losses()]
    run.policy.update_ema(KL_REFERENCE, 0.0)
    for metrics, loss in zip(before, run.losses(), strict=True):
        assert torch.equal(metrics["velocity_norm"], loss.metrics["velocity_norm"])
        assert torch.equal(metrics["weight"], loss.metrics["weight"]), "the preference is from where training started"


@pytest.mark.parametrize(("config", "more"), [(GRPOConfig, False), (DGPOConfig, True)])
def test_a_reference_of_its_own_costs_a_forward_where_another_is_measured_from_too(config: Any, more: bool) -> None:
    kept, started = learn(config, {"coefficient": WEIGHT, "refresh": {}}), learn(config, WEIGHT)
    kept.policy.update_ema(KL_REFERENCE, 0.0)
    for run in (kept, started):
        run.move_to(0.4, -0.3)
    forwards = [run.count_forwards()[1].forwards for run in (kept, started)]
    assert (forwards[0] > forwards[1]) == more


# whole runs


def raw(folder: Path, algorithm: Mapping[str, Any], iterations: int = 3, **sections: Mapping[str, Any]) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    plugin = folder / "watched.py"
    plugin.write_text(WATCHED)
    rewards = {"watched": {"name": "watched", "weight": 0}}
    training = {"iterations": iterations, "updates": 2}
    given = {"rewards": rewards, "training": training, "output": {"checkpoint_every": 1, "keep_last": None}, **sections}
    return two_parameter.settings(folder, algorithm, [plugin], **given)


def trained(config: Mapping[str, Any], resume: bool = False, said: list[str] | None = None) -> list[dict[str, Any]]:
    directory: RunDirectory = train(validate(config), resume=resume, say=said.append if said is not None else lambda _: None)
    return [record for record in directory.records() if record["iteration"] > 0]


def figures(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if not key.startswith(UNTIMED)} for record in records]


def test_a_gate_for_all_and_no_refresh_is_the_kl_of_a_number_to_the_bit(tmp_path: Path) -> None:
    plain = trained(raw(tmp_path / "plain", {**AWM, "kl": 0.05}))
    gated = trained(raw(tmp_path / "gated", {**AWM, "kl": {"coefficient": 0.05, "gate": {"share": 1}}}))
    assert [record.pop("kl_gate/share") for record in gated] == [1, 1, 1]
    told = [{key: value for key, value in record.items() if not key.startswith("kl_gate/")} for record in gated]
    assert figures(told) == figures(plain)
    assert plain[1]["kl"] > 0


def test_a_run_tells_what_its_gate_was_for_and_learns_otherwise(tmp_path: Path) -> None:
    said: list[str] = []
    dynamics = {"sampling": {"dynamics": "flow-sde"}}
    kl = {"coefficient": 20, "gate": {"share": 0.25}}
    gated = trained(raw(tmp_path / "gated", {**GRPO, "kl": kl}, **dynamics), said=said)
    whole = trained(raw(tmp_path / "whole", {**GRPO, "kl": 20}, **dynamics))
    assert [record["kl_gate/share"] for record in gated] == [0.25] * 3
    assert all(0 < record["kl_gate/uncertainty"] <= 1 and 0 < record["kl_gate/disagreement"] <= 1 for record in gated)
    assert gated[0]["reward/watched/mean"] == whole[0]["reward/watched/mean"]
    assert "advantage/watched/share" not in gated[0], "a reward of weight 0 stays out of the advantages"
    assert gated[2]["loss"] != whole[2]["loss"]
    assert any("gives a ratio of 1 within" in sentence for sentence in said)
    assert any("kl too" in sentence for sentence in said if sentence.startswith("preflight: a finite gradient"))


def test_the_reference_is_taken_anew_after_so_many_steps_or_when_it_is_too_far(tmp_path: Path) -> None:
    by_steps = trained(raw(tmp_path / "steps", {**AWM, "kl": {"coefficient": 0.05, "refresh": {"every": 3}}}, 5))
    assert [record["kl_reference/refreshed"] for record in by_steps] == [0, 1, 1, 0, 1]
    assert [record["kl_reference/steps"] for record in by_steps] == [2, 1, 0, 2, 1]
    far = {"coefficient": 0.05, "refresh": {"above": 1e-4, "every": None}}
    by_distance = trained(raw(tmp_path / "distance", {**AWM, "kl": far}, 5))
    assert [record["kl_reference/refreshed"] for record in by_distance] == [float(r["kl"] > 1e-4) for r in by_distance]
    assert {record["kl_reference/refreshed"] for record in by_distance} == {0, 1}, "both come to pass"


@pytest.mark.parametrize("algorithm", [AWM, GRPO], ids=["awm", "grpo"])
def test_the_kl_just_after_is_exactly_zero(algorithm: dict[str, Any], tmp_path: Path) -> None:
    sections: dict[str, Any] = {"training": {"iterations": 4, "updates": 1}}
    if algorithm is GRPO:
        sections["sampling"] = {"dynamics": "flow-sde"}
    records = trained(raw(tmp_path, {**algorithm, "kl": {"coefficient": 0.05, "refresh": {"every": 2}}}, **sections))
    assert [record["kl"] == 0 for record in records] == [True, False, True, False]


ANEW = {"coefficient": {"name": "adaptive", "target": 1e-3, "start": 0.03}, "gate": {"share": 0.5}, "refresh": {"every": 3}}
TOY = Path(__file__).parents[1] / "core" / "toy_plugin.py"


def on_net(folder: Path, model: str, kl: Any, iterations: int) -> dict[str, Any]:
    made = raw(folder, {**AWM, "kl": kl}, iterations)
    net = {"name": "net", "train": "full" if model == "full" else {"lora": {"rank": 2}}}
    rewards = {**made["rewards"], "light": "toy_plugin.py:bright"}
    return made | {"model": net, "rewards": rewards, "plugins": [*made["plugins"], str(TOY)]}


@pytest.mark.parametrize("model", ["full", "lora"])
@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_a_resumed_run_goes_on_bit_for_bit_whenever_it_stops(model: str, stopped: int, tmp_path: Path) -> None:
    """Two steps an iteration, and anew at steps 3, 6 and 9: before and after the first, and just at the second."""

    whole = trained(on_net(tmp_path / "whole", model, ANEW, 5))
    trained(on_net(tmp_path / "parts", model, ANEW, stopped))
    parts = trained(on_net(tmp_path / "parts", model, ANEW, 5), resume=True)
    assert figures(parts) == figures(whole)
    assert sum(record["kl_reference/refreshed"] for record in whole) == 3
    ends = [list_checkpoints(tmp_path / name / "run" / "checkpoints")[-1] for name in ("whole", "parts")]
    for role in ("weights", "training", "kept-kl reference"):
        one, other = ((end / f"checkpoint-{role}-0.safetensors").read_bytes() for end in ends)
        assert one == other, role


def test_each_checkpoint_has_the_reference_that_was_then(tmp_path: Path) -> None:
    trained(raw(tmp_path, {**AWM, "kl": {"coefficient": 0.05, "refresh": {"every": 4}}}, 4))
    found = list_checkpoints(tmp_path / "run" / "checkpoints")
    kept = [(path / "checkpoint-kept-kl reference-0.safetensors").read_bytes() for path in found]
    assert len(kept) == 4
    assert kept[0] != kept[1] == kept[2] != kept[3]
    assert not json.loads((found[-1] / "checkpoint.json").read_text()).get("reference")


@pytest.mark.parametrize(("model", "more"), [("full", 0), ("lora", 4 * 2 * (18 + 8 + 8 + 16))])
def test_an_estimate_knows_that_adapters_are_copied_and_whole_weights_are_anyway(model: str, more: int, tmp_path: Path) -> None:
    anew, fixed = (
        estimate(validate(on_net(tmp_path / name, model, kl, 5))).parts["references and averages"].device
        for name, kl in (("anew", ANEW), ("fixed", 0.03))
    )
    assert anew - fixed == more


# configs


@pytest.mark.parametrize(
    ("kl", "told"),
    [
        ({"coefficient": 0}, "algorithm.kl.coefficient: got 0; give a number above 0, or adaptive"),
        ({"gate": {}}, "algorithm.kl.coefficient: this key is missing"),
        ({"coefficient": {"name": "adaptive"}}, "algorithm.kl.coefficient.target: this key is missing"),
        ({"coefficient": 1, "gate": {"share": 0}}, "algorithm.kl.gate.share: got 0; give a number above 0 and at most 1"),
        ({"coefficient": 1, "gates": {}}, "algorithm.kl.gates: unknown key; did you mean 'gate'?"),
        ({"coefficient": 1, "refresh": {"every": 0}}, "algorithm.kl.refresh.every: got 0; give a whole number from 1 to"),
        (
            {"coefficient": 1, "refresh": {"every": None}},
            "algorithm.kl.refresh: without above and every it would never be; set one of them, or leave refresh out",
        ),
        ({"name": "gated"}, "algorithm.kl.name: got 'gated'; give adaptive"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(kl: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        validate(raw(tmp_path, {**AWM, "kl": kl}))
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("kl", "told"),
    [
        ({"name": "adaptiv", "target": 1e-3, "start": 1}, "algorithm.kl.name: got 'adaptiv'; give adaptive"),
        ({"target": 1e-3, "start": 1}, "algorithm.kl: a weight that adapts says so; add name: adaptive"),
        ({"coefficient": {"target": 1e-3}}, "algorithm.kl.coefficient: a weight that adapts says so; add name: adaptive"),
        (
            {"name": "adaptive", "target": 1e-3, "gate": {"share": 0.1}},
            "algorithm.kl: gate goes beside a weight that adapts, not into it; write kl: "
            "{coefficient: {name: adaptive, target: …}, gate: {…}}",
        ),
    ],
)
def test_one_mistake_is_told_once(kl: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        validate(raw(tmp_path, {**AWM, "kl": kl}))
    (line,) = str(refused.value).splitlines()
    assert told in line


def test_all_that_is_wrong_with_a_kl_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        validate(raw(tmp_path, {**AWM, "kl": {"name": "adaptiv", "target": -1}, "no_such": 1}))
    told = str(refused.value).splitlines()
    assert [any(key in line for line in told) for key in ("kl.name", "kl.target: got -1", "algorithm.no_such")] == [True] * 3
    assert len(told) == 3


def test_a_gate_needs_a_reward_that_is_only_watched(tmp_path: Path) -> None:
    rewards = {"rewards": {"watched": {"name": "watched", "weight": 0.5}}}
    with pytest.raises(UserError, match=r"algorithm\.kl\.gate: .*there are none; give a reward .* weight: 0"):
        validate(raw(tmp_path, {**AWM, "kl": GATED}, **rewards))


def test_an_average_that_moves_is_not_taken_anew_as_well(tmp_path: Path) -> None:
    kl = {"coefficient": 0.1, "refresh": {}}
    with pytest.raises(UserError, match=r"algorithm\.kl\.refresh: the anchor ema moves"):
        validate(raw(tmp_path, {"name": "rvm", "kl": kl, "anchor": "ema"}))
    validate(raw(tmp_path, {"name": "rvm", "kl": kl}))


STRANGER = """
from flowfactory import AlgorithmConfig, Loss, hookimpl
from flowfactory.rl import KL


class MineConfig(AlgorithmConfig):
    kl: KL = 0.0

    def build(self, label):
        return Mine()


class Mine:
    @hookimpl
    def update(self, experience, policy):
        yield Loss(experience.advantages)


@hookimpl
def register_components(register):
    register("algorithm", "mine", MineConfig)
"""


def test_an_algorithm_that_keeps_no_such_reference_is_told_so(tmp_path: Path) -> None:
    made = raw(tmp_path, {"name": "mine", "kl": {"coefficient": 0.1, "refresh": {}}})
    plugin = tmp_path / "mine.py"
    plugin.write_text(STRANGER)
    with pytest.raises(RunError, match="keeps no weights called 'kl reference'; keep them by"):
        trained(made | {"plugins": [*made["plugins"], str(plugin)]})
