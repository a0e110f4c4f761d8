"""OPD's losses and gradients, worked out in float64 on the flow p x + q sigma, and the steps that it learns at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import testing
from flowfactory.testing import Learning, Weights
from flowfactory_distill.opd import OPDConfig

TEACHER, STUDENT = (0.36, -0.25), (0.3, -0.2)
TARGETS = ("x_next", "velocity", "x0")


def teacher(folder: Path, weights: Weights, **model: Any) -> Path:
    """The run directory of one that trained whole, and ended at ``weights``."""
    folder.mkdir()
    p, q = weights
    raw = testing.settings(folder, "dpo", model={"p": p, "q": q, **model})
    return testing.train(raw, iterations=1, optimizer={"lr": 1e-12}).folder


def settings(folder: Path, path: Path, **options: Any) -> dict[str, Any]:
    p, q = STUDENT
    raw = testing.settings(
        folder,
        {"name": "opd", "teachers": {"wise": str(path)}, **options},
        model={"p": p, "q": q},
        sampling={"groups": 3, "group_size": 1, "steps": 4},
    )
    return {**raw, "rewards": {}}


def by_hand(run: Learning, target: str, scaled: bool) -> list[tuple[Tensor, Tensor]]:
    """The losses [b] and gradients [b, 2] of each step, where the schedule is 1, 3/4, 1/2, 1/4, 0."""
    found = []
    for number, step in enumerate(run.experience.steps):
        x, sigma = step.latents.double().flatten(1), 1 - number / 4
        factor = {"x_next": -1 / 4, "velocity": 1.0, "x0": -sigma}[target]
        difference = factor * ((STUDENT[0] - TEACHER[0]) * x + (STUDENT[1] - TEACHER[1]) * sigma)
        slopes = torch.stack([factor * x, torch.full_like(x, factor * sigma)])
        divisor = difference.abs().mean(1) if scaled else torch.ones(len(x), dtype=torch.float64)
        gradient = (2 * difference * slopes).mean(2) / divisor
        found.append((difference.square().mean(1) / divisor, gradient.T))
    return found


@pytest.fixture(scope="module")
def wise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher(tmp_path_factory.mktemp("teachers") / "wise", TEACHER)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("target", TARGETS)
def test_loss_and_gradient_are_those_of_the_difference(tmp_path: Path, wise: Path, target: str, scaled: bool) -> None:
    run = testing.begin(settings(tmp_path, wise, target=target, self_normalize=scaled)).draw(0)
    assert len(run.experience.steps) == 3
    losses = testing.check_losses(run, by_hand(run, target, scaled))
    for loss, (value, _) in zip(losses, by_hand(run, "velocity", scaled=False), strict=True):
        torch.testing.assert_close(loss.metrics["teacher_distance"].detach().double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_the_student_has_nothing_to_learn_from_itself(tmp_path: Path, target: str, scaled: bool) -> None:
    same = teacher(tmp_path / "same", STUDENT)
    run = testing.begin(settings(tmp_path, same, target=target, self_normalize=scaled)).draw(0)
    for loss in run.losses():
        assert not loss.values.any()
        assert not run.gradients(loss.values).any()


@pytest.mark.parametrize("dynamics", ["heun", {"name": "flow-sde"}, {"name": "flow-sde", "sde_steps": [1]}])
def test_states_are_learned_at_whatever_drew_them(tmp_path: Path, wise: Path, dynamics: Any) -> None:
    """By hand, and two steps a forward: of a stochastic step and one that is none too."""
    raw = settings(tmp_path, wise)
    raw["sampling"]["dynamics"] = dynamics
    raw["training"] |= {"timesteps_per_forward": 2, "batch_size": 2}
    run = testing.begin(raw).draw(0)
    testing.check_losses_in_any_order(run, by_hand(run, "x_next", scaled=False))
    trained = testing.train(raw)
    assert "preflight: 3 recorded steps are places to learn at: no log-density is compared" in trained.said


@pytest.mark.parametrize(
    ("share", "steps", "count"), [(0.99, 10, 9), (0.99, 100, 99), (0.99, 1, 1), (0.1, 5, 1), (1.0, 7, 7), (0.29, 100, 29)]
)
def test_the_first_of_the_steps_are_learned_at(share: float, steps: int, count: int) -> None:
    config = OPDConfig.model_validate({"teachers": {"a": "a.safetensors"}, "share": share}, context={"anywhere": True})
    assert testing.make_plan(config, steps=steps).recorded == frozenset(range(count))


@pytest.mark.parametrize(("chosen", "asked"), [(None, 1.0), (0.5, 1.0), (4.5, 4.5)])
def test_conditions_bring_what_the_guidance_of_the_teachers_needs(chosen: float | None, asked: float) -> None:
    config = OPDConfig.model_validate({"teachers": {"a": "a"}, "teacher_guidance": chosen}, context={"anywhere": True})
    assert testing.make_plan(config).teacher_guidance == asked


def test_teacher_and_student_have_each_their_guidance(tmp_path: Path) -> None:
    """Under guidance g the velocity is p x + q sigma (7 + g (l - 7)), l letters long is the prompt."""
    wise = teacher(tmp_path / "wise", TEACHER, name="guided")
    raw = settings(tmp_path, wise, target="velocity", guidance=2.0, teacher_guidance=3.0)
    raw["model"]["name"], raw["prompts"]["negative"] = "guided", "seven l"
    run = testing.begin(raw).draw(0)
    for step, loss in zip(run.experience.steps, run.losses(), strict=True):
        letters = torch.tensor([1.0 + key.prompt for key in run.experience.plan.keys], dtype=torch.float64)[:, None]
        x, sigma = step.latents.double().flatten(1), step.sigma.double()[:, None]
        student, wanted = (
            p * x + q * sigma * (7 + guidance * (letters - 7)) for (p, q), guidance in ((STUDENT, 2.0), (TEACHER, 3.0))
        )
        expected = (student - wanted).square().mean(1)
        torch.testing.assert_close(loss.values.detach().double(), expected, rtol=1e-5, atol=1e-5)


def test_each_sample_has_the_teacher_of_its_source(tmp_path: Path, wise: Path) -> None:
    same = teacher(tmp_path / "same", STUDENT)
    raw = settings(tmp_path, wise, teachers={"wise": str(wise), "same": str(same)})
    files = [tmp_path / f"{name}.txt" for name in ("one", "other")]
    for file in files:
        file.write_text(f"{file.stem}\n")
    raw["prompts"]["train"] = {"wise": {"file": str(files[0])}, "other": {"file": str(files[1]), "teacher": "same"}}
    raw["sampling"] |= {"groups": 2}
    run = testing.begin(raw).draw(0)
    assert sorted(run.experience.sources) == ["other", "wise"]
    for loss in run.losses():
        for source, value in zip(run.experience.sources, loss.values, strict=True):
            assert bool(value.detach() > 0) == (source == "wise")
    turned = replace(run, experience=run.experience.rows([1, 0]))
    for loss, other in zip(run.losses(), turned.losses(), strict=True):
        assert torch.equal(loss.values.detach(), other.values.detach().flip(0))


def test_a_run_comes_to_its_teacher_and_resumes_bit_for_bit(tmp_path: Path, wise: Path) -> None:
    raw = settings(tmp_path, wise)
    trained = testing.train(raw, iterations=40)
    found = trained.weights(40)
    assert float(found["transformer.p"]) == pytest.approx(TEACHER[0], abs=0.02)
    assert float(found["transformer.q"]) == pytest.approx(TEACHER[1], abs=0.02)
    assert not any("reward/" in name for record in trained.records for name in record)
    assert trained.records[-1]["teacher_distance"] < trained.records[0]["teacher_distance"]
    again = tmp_path / "again"
    again.mkdir()
    testing.check_resumes_bit_for_bit(settings(again, wise))
