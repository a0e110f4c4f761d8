"""A KL whose weight adapts, of every algorithm that has one, on the two-parameter bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowfactory import testing
from flowfactory.config.component import AlgorithmConfig
from flowfactory.config.loading import validate
from flowfactory.config.yaml import dump, parse_yaml
from flowfactory.errors import RunError, UserError
from flowfactory.flow import FlowSDEConfig
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.train import train
from flowfactory.testing import Learning, two_parameter
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
COUPLED: list[Any] = [GRPOConfig, GRPOGuardConfig, DPPOConfig, FlashGRPOConfig]
DECOUPLED: list[Any] = [NFTConfig, AWMConfig, CRDConfig, DGPOConfig, VGRPOConfig, RVMConfig]
ADAPTIVE = {"name": "adaptive", "target": 1e-3, "start": 0.02}
TIMES = {"name": "uniform", "count": 2}
AWM = {"name": "awm", "clip_range": 1e-4, "advantage_scale": 1, "ema_kl": 0, "timesteps": TIMES}
FIGURES = ("kl", "kl_coefficient", "loss", "grad_norm")

pytestmark = pytest.mark.usefixtures("own_cache")


def learn(config: type[AlgorithmConfig], kl: Any) -> Learning:
    dynamics: Any = FlowSDEConfig().build("dynamics") if config in COUPLED else testing.ODE()
    run = testing.learning(config.model_validate({"kl": kl}), ADVANTAGES, START, 4, dynamics, 8, 1)
    run.move_to(*MOVED)
    return run


@pytest.mark.parametrize("config", [*COUPLED, *DECOUPLED])
@pytest.mark.parametrize("weight", [None, 0.64])
def test_an_adaptive_kl_learns_as_the_number_that_it_has_come_to(config: Any, weight: float | None) -> None:
    adaptive, fixed, none = learn(config, ADAPTIVE), learn(config, weight or 0.02), learn(config, 0)
    adaptive = replace(adaptive, experience=replace(adaptive.experience, kl_coefficient=weight))
    for loss, other, without in zip(adaptive.losses(), fixed.losses(), none.losses(), strict=True):
        assert torch.equal(loss.values, other.values)
        assert torch.equal(adaptive.gradient(loss.values), fixed.gradient(other.values))
        assert not torch.equal(loss.values, without.values), "the KL makes no difference"


def trained(
    folder: Path, algorithm: Mapping[str, Any], iterations: int, resume: bool = False, plugins: Sequence[Path] = ()
) -> list[dict[str, Any]]:
    sections = {"training": {"iterations": iterations, "updates": 2}, "output": {"checkpoint_every": 1}}
    folder.mkdir(exist_ok=True)
    raw = two_parameter.settings(folder, algorithm, plugins, **sections)
    directory: RunDirectory = train(validate(raw), resume=resume, say=lambda _: None)
    return [record for record in directory.records() if record["iteration"] > 0]


def test_the_metrics_of_a_run_tell_why_each_weight_is_what_it_is(tmp_path: Path) -> None:
    kl = {"name": "adaptive", "target": 1e-3, "start": 0.01}
    records = trained(tmp_path, {**AWM, "kl": kl}, 6)
    wanted, factors = [0.01], set()
    for record in records[:-1]:
        factor = 0.5 if record["kl"] < 1e-3 / 1.5 else 2.0 if record["kl"] > 1.5e-3 else 1.0
        wanted.append(wanted[-1] * factor)
        factors.add(factor)
    assert [record["kl_coefficient"] for record in records] == wanted
    assert {0.5, 2.0} <= factors, "both sides of the target are met"


def test_a_resumed_run_goes_on_with_the_weight_bit_for_bit(tmp_path: Path) -> None:
    algorithm = {**AWM, "kl": {"name": "adaptive", "target": 1e-3, "start": 0.03}}
    whole = trained(tmp_path / "whole", algorithm, 6)
    trained(tmp_path / "parts", algorithm, 3)
    parts = trained(tmp_path / "parts", algorithm, 6, resume=True)
    assert [[record[name] for name in FIGURES] for record in parts] == [[record[name] for name in FIGURES] for record in whole]
    assert whole[3]["kl_coefficient"] != 0.03, "the weight to go on with is not the first one"


def test_a_fixed_kl_tells_no_coefficient(tmp_path: Path) -> None:
    records = trained(tmp_path, {**AWM, "kl": 0.01}, 1)
    assert "kl" in records[0]
    assert "kl_coefficient" not in records[0]


def config(folder: Path, kl: Any) -> Any:
    algorithm = {"name": "nft", "timesteps": {"name": "uniform", "count": 2}, "kl": kl}
    return validate(two_parameter.settings(folder, algorithm))


@pytest.mark.parametrize(
    ("kl", "told"),
    [
        (-1, "algorithm.kl: got -1; give a number of at least 0, or adaptive"),
        ("strong", "algorithm.kl: got 'strong'; give a number of at least 0, or adaptive"),
        ("adaptive", "algorithm.kl.target: this key is missing"),
        ({"name": "adaptive", "target": 0}, "algorithm.kl.target: got 0; give a number above 0"),
        ({"name": "adaptive", "target": 1, "goal": 1}, "algorithm.kl.goal: unknown key"),
    ],
)
def test_what_is_no_kl_is_refused_by_its_key(kl: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        config(tmp_path, kl)
    assert told in str(refused.value)


@pytest.mark.parametrize("kl", [0, 0.1, {"name": "adaptive", "target": 1e-3, "start": 0.05}])
def test_a_config_that_is_saved_has_the_same_kl_when_it_is_read(kl: Any, tmp_path: Path) -> None:
    made = config(tmp_path, kl)
    again = validate(parse_yaml(dump(made), "config.yaml"))
    assert again.algorithm.kl == made.algorithm.kl
    assert (made.algorithm.adaptive_kl is None) == isinstance(kl, int | float)


STRANGER = """
from flowfactory import At, Loss, hookimpl
from flowfactory.flow import TimestepsConfig, noised_micro_batches
from flowfactory.policy import REFERENCE
from flowfactory.rl import KL, add_kl, squared_error, velocity_kl


class MineConfig(TimestepsConfig):
    kl: KL = 0.0
    silent: bool = False

    def build(self, label):
        return Mine(self)


class Mine:
    def __init__(self, config):
        self.config = config

    @hookimpl
    def run_started(self, policy):
        policy.keep_reference()

    @hookimpl
    def update(self, experience, policy):
        for at in noised_micro_batches(experience, self.config.timesteps):
            new, kept = policy.compare(at.step, {"reference": At(REFERENCE)})
            loss = Loss(at.samples.advantages * squared_error(new.velocity, at.target))
            if not self.config.silent:
                divergence = velocity_kl(new.velocity, kept["reference"].velocity)
                loss = add_kl(loss, self.config.kl, at.samples, divergence)
            yield loss


@hookimpl
def register_components(register):
    register("algorithm", "mine", MineConfig)
"""


def test_a_strangers_algorithm_has_it_in_a_line_and_is_told_of_a_missing_term(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(STRANGER)
    records = trained(tmp_path / "run", {"name": "mine", "kl": ADAPTIVE}, 2, plugins=[plugin])
    factor = 0.5 if records[0]["kl"] < 1e-3 / 1.5 else 2.0 if records[0]["kl"] > 1.5e-3 else 1.0
    assert [record["kl_coefficient"] for record in records] == [0.02, 0.02 * factor]
    with pytest.raises(RunError, match="no loss has a term 'kl'"):
        trained(tmp_path / "silent", {"name": "mine", "kl": ADAPTIVE, "silent": True}, 2, plugins=[plugin])
