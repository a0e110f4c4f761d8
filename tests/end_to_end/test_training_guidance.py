"""Which guidance each algorithm trains under, what of it is drawn and evaluated, and what goes with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowfactory.config.idle_keys import idle_keys
from flowfactory.config.loading import validate
from flowfactory.errors import UserError
from flowfactory.flow import Uniform, noised_batches
from flowfactory.policy import At
from flowfactory.runs.train import train
from flowfactory.testing import ForwardCount, Learning, guided_learning, two_parameter
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.setup import prepare_run

DECOUPLED = ("nft", "awm", "dpo", "dgpo", "crd")
COUPLED = ("grpo", "grpo-guard", "dppo")
MOVED = (0.36, -0.25)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

pytestmark = pytest.mark.usefixtures("own_cache")


def learned(run: Learning) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of an update after a step, and their gradients by the two weights."""
    run.move_to(*MOVED)
    values = torch.cat([loss.values for loss in run.losses()])
    return values.detach(), run.gradients(values)


def as_if_drawn_under(run: Learning, guidance: float) -> Learning:
    """The same pictures, had ``guidance`` drawn them."""
    plan = replace(run.experience.plan, guidance=guidance, training_guidance=None)
    conditions = run.experience.conditions.under(guidance)
    return replace(run, experience=replace(run.experience, plan=plan, conditions=conditions))


@pytest.mark.parametrize("name", DECOUPLED)
@pytest.mark.parametrize(("chosen", "trained"), [(None, 1.0), (2.0, 2.0), (3.0, 3.0)])
def test_a_decoupled_algorithm_learns_as_if_the_guidance_it_trains_under_had_drawn(
    name: str, chosen: float | None, trained: float, tmp_path: Path
) -> None:
    algorithm = {"name": name, **({"kl": 0.5} if name != "dpo" else {}), **({"guidance": chosen} if chosen else {})}
    run = guided_learning(tmp_path, algorithm, guidance=3.0)
    assert (run.experience.plan.guidance, run.experience.conditions.negative is None) == (3.0, False)
    values, gradients = learned(run)
    expected, slopes = learned(as_if_drawn_under(run, trained))
    torch.testing.assert_close(values, expected, **CLOSE)
    torch.testing.assert_close(gradients, slopes, **CLOSE)
    if trained != 3:
        assert float((values - learned(as_if_drawn_under(run, 3.0))[0]).abs().max()) > 1e-3, "the guidance makes no difference"


@pytest.mark.parametrize("name", COUPLED)
def test_a_coupled_algorithm_learns_under_the_guidance_that_drew(name: str, tmp_path: Path) -> None:
    algorithm = {"name": name, **({"guidance": 3.0} if name == "grpo" else {})}
    run = guided_learning(tmp_path, algorithm, guidance=3.0, dynamics="flow-sde")
    assert {step.guidance for step in run.experience.steps} == {3.0}
    for loss in run.losses():
        assert torch.equal(loss.metrics["ratio/mean"], torch.ones_like(loss.values))


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("chosen", [1, 4.5])
def test_it_refuses_another_guidance_in_one_line(name: str, chosen: float, tmp_path: Path) -> None:
    raw = settings(tmp_path, {"name": name, "guidance": chosen}, dynamics="flow-sde")
    told = rf"^config: algorithm\.guidance {chosen}: algorithm {name} learns from the steps that drew"
    with pytest.raises(UserError, match=told + r", under sampling\.guidance 3, .*; leave it out$"):
        validate(raw)


def settings(folder: Path, algorithm: dict[str, Any], model: str = "guided", guidance: float = 3.0, **sampling: Any) -> Any:
    chosen = {"guidance": guidance, **sampling}
    return two_parameter.settings(folder, algorithm, model={"name": model}, sampling=chosen)


def test_one_that_records_steps_and_does_not_say_so_is_stopped_by_its_plan(tmp_path: Path) -> None:
    plugin = tmp_path / "recorder.py"
    plugin.write_text(RECORDER)
    raw = settings(tmp_path, {"name": "recorder", "guidance": 1}, dynamics="flow-sde") | {
        "plugins": [two_parameter.FILE, str(plugin)]
    }
    run = prepare_run(validate(raw))
    with pytest.raises(UserError, match=r"^algorithm\.guidance 1: algorithm recorder learns from the steps that drew"):
        collect_rollouts(run, 0, Timer(run.policy.device))


RECORDER = """
from dataclasses import replace

from flowfactory import AlgorithmConfig, Loss, hookimpl


class RecorderConfig(AlgorithmConfig):
    def build(self, label):
        return Recorder()


class Recorder:
    @hookimpl
    def plan(self, plan):
        return replace(plan, recorded=plan.stochastic)

    @hookimpl
    def update(self, experience, policy):
        for samples, step in experience.replay():
            yield Loss(-samples.advantages * policy.evaluate(step).log_prob)


@hookimpl
def register_components(register):
    register("algorithm", "recorder", RecorderConfig)
"""


@pytest.mark.parametrize("name", DECOUPLED)
def test_kept_weights_have_a_guidance_of_their_own_beside_it(name: str, tmp_path: Path) -> None:
    run = guided_learning(tmp_path, {"name": name}, guidance=3.0)
    run.policy.keep("kept")
    (at, *_) = noised_batches(run.experience.rows(range(4)), Uniform())
    assert at.step.guidance == 1
    run.move_to(*MOVED)
    _, found = run.policy.compare(at.step, {"alike": At("kept"), "guided": At("kept", 2.0)})
    x, sigma = at.step.latents, at.step.sigma[:, None, None, None]
    length = at.step.conditions.stack("length")[:, None, None, None]
    torch.testing.assert_close(found["alike"].velocity, 0.3 * x - 0.2 * sigma * length)
    torch.testing.assert_close(found["guided"].velocity, 0.3 * x - 0.2 * sigma * (7 + 2 * (length - 7)))


def test_a_gradient_through_the_prompts_velocity_alone_is_guidance_times_its_own(tmp_path: Path) -> None:
    algorithm = {"name": "awm", "guidance": 3.0, "guidance_gradient": "conditional"}
    run = guided_learning(tmp_path, algorithm, guidance=3.0)
    (at, *_) = noised_batches(run.experience.rows(range(4)), Uniform())
    velocity = run.policy.evaluate(at.step).velocity
    lengths = at.step.conditions.stack("length").double()
    x, sigma = at.step.latents.double().flatten(1), at.step.sigma.double()[:, None]
    by_hand = 0.3 * x - 0.2 * sigma * (7 + 3 * (lengths - 7))[:, None]
    torch.testing.assert_close(velocity.double().flatten(1), by_hand, **CLOSE)
    slopes = torch.stack([(3 * x).sum(1), (3 * sigma * lengths[:, None]).expand_as(x).sum(1)], 1)
    torch.testing.assert_close(run.gradients(velocity.flatten(1).sum(1)), slopes, **CLOSE)


@pytest.mark.parametrize("gradient", ["exact", "conditional"])
def test_recorded_steps_are_drawn_as_they_are_replayed(gradient: str, tmp_path: Path) -> None:
    algorithm = {"name": "grpo", "guidance_gradient": gradient}
    for loss in guided_learning(tmp_path, algorithm, guidance=3.0, dynamics="flow-sde").losses():
        assert torch.equal(loss.metrics["ratio/mean"], torch.ones_like(loss.values))


# --- forwards, on a model with a forward for each of guidance's velocities


@pytest.fixture
def forwards(tmp_path: Path) -> Callable[..., dict[str, float]]:
    """``forwards(algorithm, sampling)``: those of a picture in the third of four iterations."""

    def run(algorithm: dict[str, Any], **sampling: Any) -> dict[str, float]:
        counted = ForwardCount()
        raw = two_parameter.settings(
            tmp_path,
            algorithm,
            model={"name": "net", "guided": True, "train": "full"},
            sampling={"steps": 5, "groups": 2, "group_size": 4, **sampling},
            training={"iterations": 4, "batch_size": 8, "optimizer": {"lr": 0.01}},
        )
        raw["rewards"] = {"light": "two_parameter.py:bright"}
        raw["plugins"].append(str(Path(__file__).parents[1] / "core" / "toy_plugin.py"))
        train(validate(raw), observers=[counted], say=lambda _: None)
        return {phase: rows / 8 for phase, rows in counted.iterations[3].items() if phase != "velocity"}

    return run


STILL = {"old": {"name": "constant", "decay": 0.0}, "kl": 0.0}


def test_what_is_drawn_under_guidance_and_trained_without_takes_one_forward_to_train(forwards: Any) -> None:
    assert forwards({"name": "nft", **STILL}, guidance=3) == {"sample": 10, "train": 2, "backward": 2}


def test_trained_under_guidance_it_takes_two(forwards: Any) -> None:
    assert forwards({"name": "nft", "guidance": 3, **STILL}, guidance=3) == {"sample": 10, "train": 4, "backward": 4}


def test_and_one_backward_where_the_gradient_is_the_prompts_alone(forwards: Any) -> None:
    algorithm = {"name": "nft", "guidance": 3, "guidance_gradient": "conditional", **STILL}
    assert forwards(algorithm, guidance=3) == {"sample": 10, "train": 2, "backward": 2, "no_grad": 2}


def test_a_guidance_that_is_trained_under_alone_brings_its_negative_prompts(forwards: Any) -> None:
    assert forwards({"name": "nft", "guidance": 3, **STILL}) == {"sample": 5, "train": 4, "backward": 4}


# --- what a config says together


def remarks(folder: Path, algorithm: dict[str, Any], **sampling: Any) -> list[str]:
    return [told for told in idle_keys(validate(settings(folder, algorithm, **sampling))) if "guidance" in told]


def test_a_gradient_of_guidance_does_nothing_where_none_is_trained_under(tmp_path: Path) -> None:
    conditional = {"guidance_gradient": "conditional"}
    told = "algorithm.guidance_gradient does nothing where the trained velocity has no guidance; "
    advice = "set algorithm.guidance above 1, or leave it out"
    assert remarks(tmp_path, {"name": "nft", **conditional}) == [told + advice]
    assert remarks(tmp_path, {"name": "grpo", **conditional}, guidance=1.0, dynamics="flow-sde") == [told + advice]
    assert remarks(tmp_path, {"name": "nft", "guidance": 2, **conditional}) == []
    assert remarks(tmp_path, {"name": "grpo", **conditional}, dynamics="flow-sde") == []


def test_it_is_refused_where_a_model_does_not_tell_the_two_apart(tmp_path: Path) -> None:
    raw = settings(tmp_path, {"name": "nft", "guidance": 2, "guidance_gradient": "conditional"}, model="two-parameter")
    with pytest.raises(
        UserError, match=r"^config: algorithm\.guidance_gradient: this model computes .* together; leave it out$"
    ):
        validate(raw)


@pytest.mark.parametrize("name", ["crd", "dgpo"])
def test_guidance_of_a_kl_does_nothing_without_one(name: str, tmp_path: Path) -> None:
    told = "algorithm.kl_guidance does nothing while algorithm.kl is 0; set kl, or leave it out"
    assert remarks(tmp_path, {"name": name, "kl_guidance": 2.0}) == [told]
    assert remarks(tmp_path, {"name": name, "kl_guidance": 2.0, "kl": 0.1}) == []
