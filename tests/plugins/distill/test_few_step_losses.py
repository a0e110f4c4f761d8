"""DMD2's, TDM's and TDM-R1's losses and gradients, worked out in float64 on the flow p x + q sigma."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import testing
from flowfactory.flow import Uniform, expand_sigma, noised_batches
from flowfactory.testing import ODE, Learning, Weights
from flowfactory_distill.dmd2 import DMD2Config, choose_steps
from flowfactory_distill.few_step import FAKE, add_noise, draw
from flowfactory_distill.tdm import EDGE, TDMConfig
from flowfactory_distill.tdm_r1 import SURROGATE, TDMR1Config

TEACHER, STUDENT, FAKE_AT, SURROGATE_AT = (0.3, -0.2), (0.36, -0.25), (0.22, -0.1), (0.27, -0.3)
COUNT = 4


class Flow:
    """p x + q sigma in float64, and what it takes clean latents to be."""

    def __init__(self, weights: Weights | Tensor) -> None:
        self.weights = torch.as_tensor(weights, dtype=torch.float64)

    def velocity(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.weights[0] * x + self.weights[1] * wide(sigma, x)

    def clean(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x - wide(sigma, x) * self.velocity(x, sigma)


def wide(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.double().reshape(-1, *([1] * (like.dim() - 1)))


def mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def learn(config: Any, roles: Mapping[str, Weights]) -> Learning:
    """Four samples that the teacher drew, with the student and the roles moved to where they are told."""
    run = testing.learning(config, [1.0, -1.0] * (COUNT // 2), TEACHER, 2, ODE())
    for role, weights in roles.items():
        with run.policy.playing(role):
            run.move_to(*weights)
    run.move_to(*STUDENT)
    return run


def of_role(run: Learning, role: str, turn: int = 0) -> Learning:
    return replace(run, experience=replace(run.experience, role=role, turn=turn))


def compare(run: Learning, role: str, expected: list[tuple[Tensor, Tensor]]) -> None:
    """The losses of ``role``, and their gradients by its weights, are those ``expected``."""
    with run.policy.playing(role):
        testing.check_losses(of_role(run, role), expected, values=(1e-4, 1e-5), gradients=(2e-4, 1e-5))


def by_autograd(values: Any, weights: Weights) -> tuple[Tensor, Tensor]:
    """``values`` [b] of a flow with ``weights``, and the gradient of each by them, [b, 2]."""
    leaf = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    found = values(Flow(leaf))
    slopes = torch.stack([torch.autograd.grad(each, leaf, retain_graph=True)[0] for each in found])
    return found.detach(), slopes


@pytest.mark.parametrize("role", ["", FAKE])
def test_dmd2_is_the_papers_loss(role: str) -> None:
    run = learn(DMD2Config(), {FAKE: FAKE_AT})
    samples = of_role(run, role).experience
    step = choose_steps(samples)
    number, noise = draw(samples, "noise on samples")
    sigma, x, at = (0.02 + 0.96 * number).double(), step.latents.double(), step.sigma.double()
    drawn = Flow(STUDENT).clean(x, at)
    noised = (1 - wide(sigma, x)) * drawn + wide(sigma, x) * noise.double()

    def fake(flow: Flow) -> Tensor:
        return mean((flow.velocity(noised, sigma) - (noise.double() - drawn)).square())

    def student(flow: Flow) -> Tensor:
        score, real = Flow(FAKE_AT).clean(noised, sigma), Flow(TEACHER).clean(noised, sigma)
        scale = (drawn - real).abs().mean((1, 2, 3), keepdim=True)
        return 0.5 * mean((flow.clean(x, at) - (drawn - (score - real) / scale)).square())

    expected = by_autograd(fake, FAKE_AT) if role else by_autograd(student, STUDENT)
    compare(run, role, [expected])


@pytest.mark.parametrize("role", ["", FAKE])
@pytest.mark.parametrize("config", [TDMConfig(), TDMR1Config()], ids=["tdm", "tdm-r1"])
def test_tdm_is_the_papers_loss_at_each_boundary(config: Any, role: str) -> None:
    roles = {FAKE: FAKE_AT} | ({SURROGATE: SURROGATE_AT} if isinstance(config, TDMR1Config) else {})
    run = learn(config, roles)
    samples = of_role(run, role).experience
    expected = []
    for number, step in enumerate(samples.steps):
        share, noise = draw(samples, f"noise after step {number}")
        x, begin = step.latents.double(), step.sigma.double()
        end = torch.full_like(begin, float(samples.sigmas[number + 1]))
        sigma = end + (begin - end) * (EDGE + (1 - 2 * EDGE) * share.double())
        student = Flow(STUDENT)
        reached = x - wide(begin - end, x) * student.velocity(x, begin)
        keeps = (1 - sigma) / (1 - end)
        added = (sigma.square() - (keeps * end).square()).sqrt()
        noised = wide(keeps, x) * reached + wide(added, x) * noise.double()
        clean = student.clean(x, begin)

        def fake(flow: Flow, noised: Tensor = noised, sigma: Tensor = sigma, clean: Tensor = clean) -> Tensor:
            snr = ((1 - sigma) / sigma).square().clamp_max(5)
            return snr * mean((flow.clean(noised, sigma) - clean).square())

        def follow(flow: Flow, noised: Tensor = noised, sigma: Tensor = sigma, x: Tensor = x, begin: Tensor = begin) -> Tensor:
            real, score = Flow(TEACHER).clean(noised, sigma), Flow(FAKE_AT).clean(noised, sigma)
            own = flow.clean(x, begin)

            def huber(direction: Tensor, other: Tensor) -> Tensor:
                miss = own - (own.detach() + direction)
                scale = (own.detach() - other).abs().mean((1, 2, 3), keepdim=True)
                return mean(((miss.square() + 1e-6).sqrt() - 1e-3) / scale)

            if not isinstance(config, TDMR1Config):
                return huber(real - score, real)
            preferred = Flow(SURROGATE_AT).clean(noised, sigma)
            # this flow has no guidance, so that the teacher's adds nothing
            return huber(real - score, real) + 0.3 * huber(real - real, real) + 0.7 * huber(preferred - real, preferred)

        expected.append(by_autograd(fake, FAKE_AT) if role else by_autograd(follow, STUDENT))
    compare(run, role, expected)


def test_the_surrogate_learns_what_the_group_prefers_by_errors_of_clean_latents() -> None:
    config = TDMR1Config(clip_range=1)
    run = learn(config, {FAKE: FAKE_AT, SURROGATE: SURROGATE_AT})
    learned = of_role(run, SURROGATE)
    (at,) = noised_batches(replace(learned.experience, steps=()), Uniform(count=1), shared=True)
    x, sigma, target = at.step.latents.double(), at.step.sigma.double(), at.target.double()
    advantage = learned.experience.advantages.double()

    def error(flow: Flow) -> Tensor:
        return sigma.square() * mean((flow.velocity(x, sigma) - target).square())

    gap = advantage * 10 * (error(Flow(SURROGATE_AT)) - error(Flow(TEACHER))) / 2
    weight = torch.sigmoid(gap.reshape(-1, 2).sum(1).repeat_interleave(2))

    def values(flow: Flow) -> Tensor:
        away = mean((flow.velocity(x, sigma) - Flow(TEACHER).velocity(x, sigma)).square())
        return weight * advantage * error(flow) + 1e-3 * away

    compare(run, SURROGATE, [by_autograd(values, SURROGATE_AT)])


@pytest.mark.parametrize("config", [DMD2Config(), TDMConfig()], ids=["dmd2", "tdm"])
def test_where_the_fake_score_is_the_teacher_the_student_stays(config: Any) -> None:
    run = learn(config, {FAKE: TEACHER})
    for loss in run.losses():
        assert not run.gradient(loss.values).any()


@pytest.mark.parametrize("config", [DMD2Config(), TDMConfig()], ids=["dmd2", "tdm"])
def test_each_turn_of_the_fake_score_has_noise_of_its_own_and_a_samples_is_that_of_any_piece(config: Any) -> None:
    run = learn(config, {FAKE: FAKE_AT})
    first, second = of_role(run, FAKE, 0).experience, of_role(run, FAKE, 1).experience
    assert not torch.equal(draw(first, "x")[1], draw(second, "x")[1])
    torch.testing.assert_close(draw(first.rows([2]), "x")[1], draw(first, "x")[1][2:3])


def test_noise_that_is_added_has_the_spread_of_the_sigma_that_is_come_to() -> None:
    source = torch.Generator().manual_seed(0)
    x0, e1, e2 = torch.randn(3, 20000, generator=source, dtype=torch.float64)
    begin, end = torch.tensor([0.4]), torch.tensor([0.7])
    there = (0.6 * x0 + 0.4 * e1)[None]
    found = add_noise(there, begin, end, e2[None])[0]
    assert float(torch.dot(found, x0) / torch.dot(x0, x0)) == pytest.approx(0.3, abs=0.02)
    assert float((found - 0.3 * x0).std()) == pytest.approx(0.7, abs=0.02)
    assert torch.equal(expand_sigma(begin, there), torch.tensor([[0.4]]))


def test_a_role_is_left_as_it_learned_and_the_policy_as_it_was() -> None:
    run = learn(TDMConfig(), {FAKE: FAKE_AT})
    assert run.weights() == pytest.approx(STUDENT)
    assert run.weights(FAKE) == pytest.approx(FAKE_AT)
    with run.policy.playing(FAKE):
        assert run.weights() == pytest.approx(FAKE_AT)
        assert run.weights("policy") == pytest.approx(STUDENT)
        run.move_to(1.0, 2.0)
    assert run.weights() == pytest.approx(STUDENT)
    assert run.weights(FAKE) == (1.0, 2.0)
    assert run.weights("reference") == pytest.approx(TEACHER)


def test_nothing_but_the_student_is_learned_where_its_dynamics_are_others(tmp_path: Path) -> None:
    raw = testing.settings(tmp_path, "tdm", sampling={"dynamics": "flow-sde"})
    testing.check_refused(raw, "sampling.dynamics: flow-sde: a student of a few steps takes those of ode")
