from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from faulty_model import FaultyConfig
from torch import Tensor

from flowfactory import flow, hookimpl
from flowfactory.config.component import AlgorithmConfig, ComponentConfig, ModelConfig
from flowfactory.experience import Experience, Loss
from flowfactory.policy.comparing import At, Comparison
from flowfactory.policy.policy import REFERENCE, Policy
from flowfactory.rl.groups import center
from flowfactory.testing import TwoParameter, TwoParameterConfig, check_algorithm, check_model, check_reward
from flowfactory.types import Conditions, Evaluation, Samples, SamplingPlan, Step, Trajectory

SAMPLES = Samples(
    torch.rand(4, 1, 4, 4, generator=flow.generator("media")), ("a", "a", "b", "b"), torch.tensor([0, 0, 1, 1]), ({},) * 4
)
Score = Callable[[Samples], Any]


class ScoredBy(ComponentConfig):
    """A reward that scores as it is told to."""

    score: Any

    def build(self, label: str) -> object:
        score = self.score

        class Reward:
            @hookimpl
            def compute_reward(self, samples: Samples) -> dict[str, Any]:
                return {label: score(samples)}

        return Reward()


class Drawn(ModelConfig):
    """A model that is made as it is told to."""

    make: Any

    def build(self, label: str) -> object:
        return self.make(0.1, 0.2)


class Learns(AlgorithmConfig):
    """An algorithm whose losses are as it is told."""

    loss: Any

    def build(self, label: str) -> object:
        loss = self.loss

        class Algorithm:
            @hookimpl
            def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
                for batch in experience.micro_batches():
                    for step in batch.steps:
                        made = loss(step, batch, policy)
                        if made is not None:
                            yield made

        return Algorithm()


def brightness(samples: Samples) -> Tensor:
    return samples.media.flatten(1).mean(1)


def ratio(step: Step, policy: Policy) -> Tensor:
    new = policy.evaluate(step).log_prob
    assert new is not None
    assert step.log_prob is not None
    return torch.exp(new - step.log_prob)


def policy_gradient(step: Step, batch: Experience, policy: Policy) -> Loss:
    return Loss(-ratio(step, policy) * batch.advantages)


def test_a_good_reward_is_let_through_with_its_scores() -> None:
    scores = check_reward(ScoredBy(score=brightness), SAMPLES)
    torch.testing.assert_close(scores["under test"], SAMPLES.media.mean((1, 2, 3)))


def darkens(samples: Samples) -> Tensor:
    scores = brightness(samples)
    samples.media.mul_(0.5)
    return scores


def test_a_reward_that_looks_at_its_group_says_so() -> None:
    config = ScoredBy(score=lambda samples: center(brightness(samples), samples.groups))
    with pytest.raises(
        AssertionError, match=r"alone and .* in a batch; pass pointwise=False if it is meant to look at the group"
    ):
        check_reward(config, SAMPLES)
    check_reward(config, SAMPLES, pointwise=False)


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        (lambda samples: torch.rand(len(samples.prompts)), "the reward gives other scores for the same pictures"),
        (lambda samples: brightness(samples) / 0, "gave inf for sample 0; scores must be finite"),
        (lambda samples: samples.media.mean(), r"gave \[\]; expected a tensor \[4\], one score a sample"),
        (lambda samples: samples.media.flatten(1), r"gave \[4, 16\]; expected a tensor \[4\]"),
        (lambda samples: brightness(samples).tolist(), "gave list; expected a tensor"),
    ],
)
def test_a_reward_that_breaks_its_contract_is_refused(score: Score, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_reward(ScoredBy(score=score), SAMPLES)


def test_a_reward_that_tells_nothing_apart_is_refused_unless_it_is_not_meant_to() -> None:
    config = ScoredBy(score=lambda samples: torch.full((len(samples.prompts),), 0.5))
    with pytest.raises(AssertionError, match=r"all 4 samples score 0\.5, and no two are the same"):
        check_reward(config, SAMPLES)
    check_reward(config, SAMPLES, varies=False)
    check_reward(config, replace(SAMPLES, media=SAMPLES.media[:1].expand_as(SAMPLES.media)))


def test_a_reward_that_changes_the_pictures_is_refused() -> None:
    mine = replace(SAMPLES, media=SAMPLES.media.clone())
    with pytest.raises(
        AssertionError, match=r"changed the pictures, which other rewards see too; work on samples\.media\.clone\(\)"
    ):
        check_reward(ScoredBy(score=darkens), mine)


def test_a_reward_without_its_hook_is_refused() -> None:
    class Nothing(ComponentConfig):
        def build(self, label: str) -> object:
            return object()

    with pytest.raises(AssertionError, match="object does not implement compute_reward"):
        check_reward(Nothing(), SAMPLES)


def test_the_two_parameter_model_keeps_its_contract() -> None:
    check_model(TwoParameterConfig(p=0.1, q=0.2), size=(4, 4))


class Bright(TwoParameter):
    @hookimpl
    def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
        drawn = super().sample(conditions, plan)
        return replace(drawn, media=drawn.media + 1)


class Forgetful(TwoParameter):
    @hookimpl
    def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
        return replace(super().sample(conditions, plan), steps=())


class Random(TwoParameter):
    @hookimpl
    def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
        drawn = super().sample(conditions, plan)
        return replace(drawn, latents=drawn.latents + torch.rand(()))


class Sociable(TwoParameter):
    """The velocity of a sample depends on the others of its batch."""

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        return super().velocity(latents, sigma, conditions, guidance) + latents.mean()


class TwoWays(TwoParameter):
    @hookimpl
    def log_prob(self, step: Step) -> Evaluation:
        velocity = self.velocity(step.latents, step.sigma, step.conditions, step.guidance)
        return flow.evaluate(velocity * 1.01, step)


class Detached(TwoParameter):
    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        return self.flow.p * latents + self.flow.q.detach() * flow.expand_sigma(sigma, latents)


class Endless(TwoParameter):
    """The root of q - q is zero, and its gradient infinite."""

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
        nothing = (self.flow.q - self.flow.q.detach()).abs().sqrt()
        return super().velocity(latents, sigma, conditions, guidance) + nothing


class Graph(TwoParameter):
    @hookimpl
    def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
        with torch.enable_grad():
            return super().sample(conditions, plan)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Bright, r"the model's media lie outside \[0, 1\] by "),
        (Forgetful, "not every step that the plan records is recorded"),
        (Random, "the same plan drew something else"),
        (Sociable, "the batch size changes what is drawn"),
        (TwoWays, "replaying a recorded step gives a ratio that is off by "),
        (Detached, "transformer.q gets no gradient"),
        (Endless, "the gradient of transformer.q is not finite"),
        (Graph, "sampling kept a graph"),
    ],
)
def test_a_model_that_breaks_its_contract_is_refused(model: type[TwoParameter], sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_model(Drawn(make=model), size=(4, 4))


def encoding(made: Callable[[Tensor], Tensor]) -> type[TwoParameter]:
    class Encodes(TwoParameter):
        @hookimpl
        def encode_media(self, media: Tensor) -> Tensor:
            return made(media)

    return Encodes


def test_a_model_that_encodes_media_is_let_through() -> None:
    sizes = []
    check_model(Drawn(make=encoding(lambda media: (sizes.append(len(media)), 4 * media - 2)[1])), size=(4, 4))
    assert sizes == [8, 1]


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            lambda media: 4 * media[..., :2] - 2,
            r"encode_media returned latents of shape \[8, 1, 4, 2\], and sample of .*4, 4\]$",
        ),
        (lambda media: media + torch.rand(()), "encode_media returned something else of the same media: take the mean"),
        (lambda media: media - media.mean(), "encode_media returned something else of the same media: .*look at each alone"),
        (lambda media: media[:1], r"encode_media \(test_contracts.py line \d+\) returned 1 latents of 8 media; return each"),
        (lambda media: media / 0, r"encode_media.* returned latents that are not finite"),
        (lambda media: None, r"encode_media .* returned nothing; return a torch.Tensor of latents"),
    ],
    ids=["shape", "random", "sociable", "few", "infinite", "none"],
)
def test_a_model_that_encodes_media_otherwise_is_refused(made: Callable[[Tensor], Any], sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_model(Drawn(make=encoding(made)), size=(4, 4))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("above-zero", "its sigmas end at 0.1; they must end at 0, clean latents"),
        ("above-one", "its sigmas begin at 1.1; they must begin at 1, noise"),
        ("short", r"its sigmas have shape \[4\] for 4 steps; return \[5\]"),
        ("rising", "its sigmas are .*; each must be below the one before"),
        ("broadcast", r"its velocity has shape \[8, 1, 4, 1\] where its latents have \[8, 1, 4, 4\]"),
        ("large", "it drew 8 x 4 pixels on a canvas of 4 x 4 pixels"),
        ("moving", "it drew 3 frames of 4 x 4 pixels on a canvas of 4 x 4 pixels"),
        ("flat", r"it drew media \[8, 4, 4\]; return \[B, C, H, W\]"),
        ("signed", r"the model's media lie outside \[0, 1\] by 0\.\d\d of their contrast"),
        ("bytes", r"the model's media lie outside \[0, 1\] by \d\.\d\d of their contrast"),
        ("blocks", "its blocks name 'LinearBlock', which is no class of its repeated blocks"),
        ("unread", "'embeds' in the conditions of 'a red circle' and .* is the same for all"),
        ("conditions", "encode made 'embeds' that is not finite, for the prompt 'a red circle'"),
        ("velocity", r"latents that are not finite for the prompt 'a red circle' and 7 more of 8 samples, from step 1 of 4 on"),
        ("media", "media that are not finite for the prompt 'a red circle' and 7 more of 8 samples, of latents that are"),
        ("padding", "the batch size changes what is drawn: a sample looks at others, or at padding that a mask should hide"),
    ],
)
def test_a_model_with_a_silent_fault_is_refused(fault: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_model(FaultyConfig(p=0.1, q=0.2, fault=fault), size=(4, 4))


def test_the_same_model_without_its_fault_is_let_through() -> None:
    check_model(FaultyConfig(p=0.1, q=0.2), size=(4, 4))


def test_one_prompt_is_compared_with_another_text() -> None:
    with pytest.raises(AssertionError, match=r"'embeds' in the conditions of 'a' and .* is the same for all"):
        check_model(FaultyConfig(p=0.1, q=0.2, fault="unread"), ["a"], size=(4, 4))


def test_a_good_algorithm_is_let_through_and_learns() -> None:
    history = check_algorithm(Learns(loss=policy_gradient))
    assert len(history) == 30
    assert history[-1] > history[0]


def frozen(step: Step, batch: Experience, policy: Policy) -> Loss:
    with torch.no_grad():
        return policy_gradient(step, batch, policy)


def one_weight(step: Step, batch: Experience, policy: Policy) -> Loss:
    return Loss(policy.parameters["transformer.p"] * batch.advantages)


def dead_term(step: Step, batch: Experience, policy: Policy) -> Loss:
    made = policy_gradient(step, batch, policy)
    return replace(made, terms={"kl": made.values.detach()})


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (lambda step, batch, policy: None, "update yielded no loss"),
        (lambda step, batch, policy: Loss((ratio(step, policy) * batch.advantages).mean()), r"yielded a Loss with values \[\]"),
        (lambda step, batch, policy: ratio(step, policy), "yielded a Tensor; yield one flowfactory.Loss after the other"),
        (lambda step, batch, policy: Loss(ratio(step, policy) / 0), "a loss is not finite"),
        (frozen, "a loss has no gradient"),
        (one_weight, "transformer.q gets no gradient"),
        (dead_term, "the term 'kl' has no gradient"),
        (lambda s, b, p: Loss(ratio(s, p) * b.advantages), "took the mean reward from .* to .*; it should rise"),
    ],
)
def test_an_algorithm_that_breaks_its_contract_is_refused(loss: Any, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_algorithm(Learns(loss=loss))


def test_an_algorithm_that_changes_its_experience_is_refused() -> None:
    class Whole(AlgorithmConfig):
        def build(self, label: str) -> object:
            class Algorithm:
                @hookimpl
                def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
                    experience.latents.mul_(1.5)
                    yield policy_gradient(experience.steps[0], experience, policy)

            return Algorithm()

    with pytest.raises(AssertionError, match="update changed the experience it was given"):
        check_algorithm(Whole())


class OwnTimes(AlgorithmConfig):
    """The advantage-weighted matching error, under the guidance that drew where it does not heed the one to train under."""

    heeds: bool

    def build(self, label: str) -> object:
        heeds = self.heeds

        class Algorithm:
            @hookimpl
            def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
                for at in flow.noised_micro_batches(experience, flow.Uniform()):
                    step = at.step if heeds else replace(at.step, guidance=experience.plan.guidance)
                    error = (policy.evaluate(step).velocity - at.target).square().flatten(1).mean(1)
                    yield Loss(at.samples.advantages * error)

        return Algorithm()


def test_an_algorithm_that_trains_under_another_guidance_than_it_is_told_is_refused() -> None:
    check_algorithm(OwnTimes(heeds=True), iterations=20)
    with pytest.raises(
        AssertionError, match=r"trains under guidance \[1\.0\] where .* is 2\.5; make its steps by flow\.noised"
    ):
        check_algorithm(OwnTimes(heeds=False), iterations=20)


class Compares(AlgorithmConfig):
    """Pulls towards the reference, and names of its comparisons what ``chosen`` leaves."""

    chosen: Any

    def build(self, label: str) -> object:
        chosen, kept = self.chosen, {"reference": At(REFERENCE)}

        class Algorithm:
            @hookimpl
            def run_started(self, policy: Policy) -> None:
                policy.keep_reference()

            @hookimpl
            def comparisons(self, experience: Experience) -> Iterator[Comparison]:
                return ((step, kept) for step in chosen([step for _, step in experience.replay()]))

            @hookimpl
            def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
                for samples, step in experience.replay():
                    new, found = policy.compare(step, kept)
                    distance = (new.velocity - found["reference"].velocity).square().flatten(1).mean(1)
                    assert new.log_prob is not None
                    assert step.log_prob is not None
                    yield Loss(1e-3 * distance - torch.exp(new.log_prob - step.log_prob) * samples.advantages)

        return Algorithm()


def test_an_algorithm_that_names_what_it_compares_is_let_through() -> None:
    check_algorithm(Compares(chosen=list))


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (lambda steps: [], r"^comparisons names 0, and update makes \d+; yield one for each call of policy\.compare$"),
        (lambda steps: steps[:-1], r"^comparisons names \d+, and update makes \d+; yield one"),
        (lambda steps: [*steps, steps[0]], r"^comparisons names \d+, and update makes \d+; yield one"),
        (lambda steps: steps[::-1], r"^the algorithm's comparisons are not those that its update makes; yield the same steps"),
        (lambda steps: [*steps[1:], steps[0]], r"^the algorithm's comparisons are not those that its update makes; "),
    ],
    ids=["none", "fewer", "more", "reversed", "turned"],
)
def test_an_algorithm_that_names_other_comparisons_than_it_makes_is_refused(chosen: Any, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        check_algorithm(Compares(chosen=chosen))
