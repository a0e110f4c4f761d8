from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from flowfactory import flow, hookimpl
from flowfactory.config.component import AlgorithmConfig
from flowfactory.config.schema import RunConfig
from flowfactory.errors import RunError
from flowfactory.experience import Experience, Loss
from flowfactory.hooks.calls import Hooks
from flowfactory.hooks.manager import make_manager
from flowfactory.policy.policy import Policy
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.preflight import Finding, gradients_flow, preflight, ratio_is_one, rewards_differ, trains
from flowfactory.training.rollouts import Rollouts
from flowfactory.training.setup import Run
from flowfactory.types import Evaluation, Step

Prepared = Callable[..., Run]
Make = Callable[[Step, Experience, Policy], Loss]
CPU = torch.device("cpu")


@pytest.fixture
def run(prepared: Prepared) -> Run:
    return prepared({"model": {"name": "net", "train": "full"}})


def learning(make: Make) -> Hooks:
    """Hooks whose algorithm yields what ``make`` makes of the first recorded step."""

    class Algorithm:
        @hookimpl
        def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
            for batch in experience.micro_batches():
                yield make(batch.steps[0], batch, policy)

    return Hooks(make_manager({"algorithm": Algorithm()}))


def surrogate(step: Step, batch: Experience, policy: Policy) -> Tensor:
    new = policy.evaluate(step).log_prob
    assert new is not None
    assert step.log_prob is not None
    return -torch.exp(new - step.log_prob) * batch.advantages


def refusal(run: Run, make: Make) -> str:
    with pytest.raises(RunError, match=r"^preflight: ") as refused:
        list(preflight(collect_rollouts(run, 0, Timer(CPU)), run.policy, learning(make), run.config))
    return str(refused.value).removeprefix("preflight: ")


def replayed(run: Run, experience: Experience, config: RunConfig | None = None, deviation: float | None = None) -> Finding:
    """What preflight finds of replaying the recorded steps of ``experience``."""
    pool = Rollouts(experience, sampling_deviation=deviation)
    return ratio_is_one(pool, run.policy, run.assembly.hooks, config or run.config)


def test_a_sound_run_is_told_what_was_proved(run: Run) -> None:
    said = list(preflight(collect_rollouts(run, 0, Timer(CPU)), run.policy, run.assembly.hooks, run.config))
    assert said[0] == f"all weights of transformer: {18 * 8 + 8 + 8 * 16 + 16} trainable weights"
    assert said[1] == "rewards are finite and differ within groups: bright in 100% of the groups"
    assert said[2].startswith("replaying 2 recorded steps gives a ratio of 1 within ")
    assert said[3] == "a finite gradient reaches all 4 trainable tensors, pull too"
    assert len(said) == 4


def test_it_leaves_no_trace(run: Run) -> None:
    pool = collect_rollouts(run, 0, Timer(CPU))
    before = [p.detach().clone() for p in run.policy.parameters.values()]
    random = torch.get_rng_state()
    list(preflight(pool, run.policy, run.assembly.hooks, run.config))
    assert all(map(torch.equal, before, run.policy.parameters.values()))
    assert all(p.grad is None for p in run.policy.parameters.values())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_adapted_layers_are_counted_and_named(prepared: Prepared) -> None:
    finding = trains(prepared({"model": {"name": "net", "train": {"lora": {"rank": 2}}}}).policy)
    assert finding == (True, f"LoRA on 2 layers (0, 2): {2 * (18 + 8) + 2 * (8 + 16)} trainable weights")


def test_nothing_that_trains_is_found_out(run: Run) -> None:
    for parameter in run.policy.parameters.values():
        parameter.requires_grad_(False)
    assert not trains(run.policy).holds


def test_a_penalty_computed_under_no_grad_is_found_out(run: Run) -> None:
    def make(step: Step, batch: Experience, policy: Policy) -> Loss:
        with torch.no_grad():
            kl = policy.evaluate(step).velocity.square().flatten(1).mean(1)
        return Loss(surrogate(step, batch, policy) + kl, terms={"kl": kl})

    assert refusal(run, make) == "the term 'kl' of the loss has no gradient (computed under no_grad?), so it would do nothing"


def test_a_penalty_that_hangs_on_nothing_that_trains_is_found_out(run: Run) -> None:
    def make(step: Step, batch: Experience, policy: Policy) -> Loss:
        kl = torch.zeros(len(batch), requires_grad=True) * 2
        return Loss(surrogate(step, batch, policy) + kl, terms={"kl": kl})

    assert "the term 'kl' of the loss has no gradient" in refusal(run, make)


def test_a_loss_without_a_gradient_is_found_out(run: Run) -> None:
    def make(step: Step, batch: Experience, policy: Policy) -> Loss:
        with torch.no_grad():
            return Loss(surrogate(step, batch, policy))

    assert refusal(run, make).startswith("the loss has no gradient (computed under no_grad?), so that nothing would train")


def test_no_loss_is_found_out(run: Run) -> None:
    class Silent:
        @hookimpl
        def update(self) -> Iterator[Loss]:
            return iter(())

    pool = collect_rollouts(run, 0, Timer(CPU))
    hooks = Hooks(make_manager({"algorithm": Silent()}))
    finding = gradients_flow(pool, run.policy, hooks, run.config.algorithm)
    assert finding == (False, "the algorithm yields no loss, so nothing would train")


def test_a_weight_that_no_gradient_reaches_is_named(run: Run) -> None:
    run.policy.modules["transformer"].register_parameter("forgotten", torch.nn.Parameter(torch.ones(2)))
    run.policy._transformers._named = {}  # which knows what it had
    sentence = refusal(run, lambda step, batch, policy: Loss(surrogate(step, batch, policy)))
    assert sentence == "1 of 5 trainable weights get no gradient, the first transformer.forgotten"


def test_a_gradient_that_is_not_finite_is_named(run: Run) -> None:
    def make(step: Step, batch: Experience, policy: Policy) -> Loss:
        bias = policy.parameters["transformer.2.bias"]
        return Loss(surrogate(step, batch, policy) + (bias - bias.detach()).square().sum().sqrt())  # sqrt'(0) is infinite

    assert refusal(run, make) == "the gradient of transformer.2.bias is not finite (1 of 4 weights)"


def test_gradients_that_are_all_zero_are_found_out(run: Run) -> None:
    assert refusal(run, lambda s, b, p: Loss(0 * surrogate(s, b, p))) == "every gradient is zero, so nothing would train"


def test_a_ratio_that_is_off_is_found_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = run.assembly.hooks._hook.log_prob.get_hookimpls()[0].plugin
    clean = model._forward
    torch.manual_seed(0)
    # a functional dropout, which eval() does not switch off
    monkeypatch.setattr(model, "_forward", lambda *a: torch.nn.functional.dropout(clean(*a), 0.1, training=True))
    sentence = refusal(run, lambda step, batch, policy: Loss(surrogate(step, batch, policy)))
    assert sentence.startswith("replaying 2 recorded steps gives a ratio of 1 within ")
    assert sentence.endswith(
        "more than 1e-05: the model does not compute the same in training as in sampling "
        "(dropout, another dtype, torch.compile, or a transformer run in two ways)"
    )


def test_the_size_of_the_deviation_is_told(run: Run) -> None:
    pool = collect_rollouts(run, 0, Timer(CPU))
    steps = tuple(
        replace(step, log_prob=None if step.log_prob is None else step.log_prob - 0.01) for step in pool.experience.steps
    )
    finding = replayed(run, replace(pool.experience, steps=steps))
    assert not finding.holds
    assert "a ratio of 1 within 1.0e-02, more than 1e-05" in finding.sentence  # exp(0.01) - 1


def test_recorded_steps_without_a_density_are_found_out(run: Run) -> None:
    pool = collect_rollouts(run, 0, Timer(CPU))
    steps = tuple(replace(step, log_prob=None) for step in pool.experience.steps)
    finding = replayed(run, replace(pool.experience, steps=steps))
    assert finding == (False, "a recorded step has no log-density: its dynamics are deterministic")
    assert replayed(run, replace(pool.experience, steps=())).holds


def test_constant_rewards_are_found_out_and_named(run: Run, prepared: Prepared) -> None:
    constant = prepared({"rewards": {"glow": {"name": "bright", "scale": 0}, "bright": None}})
    pool = collect_rollouts(constant, 0, Timer(CPU))
    finding = rewards_differ(pool.experience.rewards, pool.experience.groups, constant.config)
    assert not finding.holds
    assert finding.sentence.startswith("rewards do not differ within any group (all of 'glow' are near 0)")
    with pytest.raises(RunError, match=r"^preflight: rewards do not differ within any group"):
        list(preflight(pool, constant.policy, constant.assembly.hooks, constant.config))


def test_every_constant_reward_is_named(prepared: Prepared) -> None:
    run = prepared({"rewards": {"bright": {"name": "bright"}, "glow": {"name": "bright"}}})
    rewards = {"bright": torch.full((4,), 0.5), "glow": torch.full((4,), 2.0, dtype=torch.bfloat16)}
    finding = rewards_differ(rewards, torch.tensor([0, 0, 1, 1]), run.config)
    told = "rewards do not differ within any group (all of 'bright' are near 0.5, all of 'glow' are near 2), so"
    assert finding.sentence.startswith(told)
    assert "flowfactory sample" not in finding.sentence  # which needs a checkpoint, and there is none
    assert finding.sentence.endswith("take a reward that gives partial credit, other prompts, or a larger sampling.group_size")


def test_rewards_that_cancel_are_found_out_and_named(prepared: Prepared) -> None:
    rewards = {"bright": {"name": "bright", "weight": 2}, "gloom": {"name": "bright", "scale": -2}}
    run = prepared({"rewards": rewards})
    pool = collect_rollouts(run, 0, Timer(CPU))
    with pytest.raises(RunError) as refused:
        list(preflight(pool, run.policy, run.assembly.hooks, run.config))
    assert str(refused.value) == (
        "preflight: the rewards cancel within every group ('bright' of weight 2, 'gloom' of weight 1), so nothing would be "
        "learned; change the weights"
    )


def test_a_resumed_run_without_a_spread_is_left_to_its_patience(prepared: Prepared) -> None:
    run = prepared({"rewards": {"glow": {"name": "bright", "scale": 0}, "bright": None}})
    pool = collect_rollouts(run, 0, Timer(CPU))
    said = list(preflight(pool, run.policy, run.assembly.hooks, run.config, resumed=True))
    assert [sentence.split()[0] for sentence in said] == ["all", "replaying"]


def test_rewards_that_differ_between_groups_alone_teach_nothing(run: Run) -> None:
    groups = torch.tensor([0, 0, 1, 1])
    assert not rewards_differ({"bright": torch.tensor([1.0, 1.0, 2.0, 2.0])}, groups, run.config).holds
    finding = rewards_differ({"bright": torch.tensor([1.0, 1.5, 2.0, 2.0])}, groups, run.config)
    assert finding == (True, "rewards are finite and differ within groups: bright in 50% of the groups")


def test_a_reward_that_is_only_watched_does_not_count(prepared: Prepared) -> None:
    rewards = {"bright": {"name": "bright", "scale": 0}, "watched": {"name": "bright", "weight": 0}}
    run = prepared({"rewards": rewards})
    pool = collect_rollouts(run, 0, Timer(CPU))
    assert not rewards_differ(pool.experience.rewards, pool.experience.groups, run.config).holds


def test_a_failing_check_stops_the_run_before_its_first_step(prepared: Prepared, trained: Callable[..., Any]) -> None:
    with pytest.raises(RunError, match=r"^preflight: rewards do not differ .*; there is no checkpoint yet$"):
        trained({"rewards": {"bright": {"name": "bright", "scale": 0}}})


def test_a_run_that_failed_its_checks_is_not_in_the_way_of_the_corrected_one(trained: Callable[..., Any]) -> None:
    with pytest.raises(RunError, match="preflight"):
        trained({"rewards": {"bright": {"name": "bright", "scale": 0}}}, out="same")
    assert trained(out="same").records()[-1]["iteration"] > 0


def test_replay_is_asked_of_the_models_one_forward(run: Run) -> None:
    pool = collect_rollouts(run, 0, Timer(CPU))
    seen: list[Step] = []

    def evaluate(step: Step) -> Evaluation:
        seen.append(step)
        return flow.evaluate(torch.zeros_like(step.latents), step)

    run.policy._evaluate = evaluate
    assert not replayed(run, pool.experience).holds
    # all of the first of two updates, in batches of training, each recorded step
    assert [len(step.latents) for step in seen] == [4, 4, 4, 4]


def yielding(*makes: Make) -> tuple[Hooks, list[Experience]]:
    """Hooks whose algorithm yields one loss from each of ``makes``, and for each that was asked for what it was made of."""
    asked: list[Experience] = []

    class Algorithm:
        @hookimpl
        def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
            for make in makes:
                asked.append(experience)
                yield make(experience.steps[0], experience, policy)

    return Hooks(make_manager({"algorithm": Algorithm()})), asked


def reaching(*names: str) -> Make:
    """A loss that reaches these weights alone."""

    def make(step: Step, batch: Experience, policy: Policy) -> Loss:
        return Loss(sum((policy.parameters[f"transformer.{name}"].sum() for name in names), torch.zeros(len(batch))))

    return make


def sound(step: Step, batch: Experience, policy: Policy) -> Loss:
    return Loss(surrogate(step, batch, policy))


def severed(step: Step, batch: Experience, policy: Policy) -> Loss:
    """Sound but for its term."""
    return sound(step, batch, policy).add_term("kl", 1.0, torch.ones(len(batch)))


def test_a_term_without_a_gradient_in_a_later_loss_is_found_while_weights_are_unproven(run: Run) -> None:
    pool = collect_rollouts(run, 0, Timer(CPU))
    hooks, asked = yielding(reaching("0.weight", "0.bias"), severed, sound)
    finding = gradients_flow(pool, run.policy, hooks, run.config.algorithm)
    assert finding == (False, "the term 'kl' of the loss has no gradient (computed under no_grad?), so it would do nothing")
    assert len(asked) == 2


def test_no_loss_is_asked_for_after_the_one_that_proves_every_weight(run: Run) -> None:
    pool = collect_rollouts(run, 0, Timer(CPU))
    for losses, count in (
        ((sound, severed), 1),
        ((reaching("0.weight", "0.bias"), reaching("2.weight", "2.bias"), severed), 2),
        ((lambda s, b, p: Loss(0 * surrogate(s, b, p)), sound, severed), 2),  # a gradient of zero proves nothing
    ):
        hooks, asked = yielding(*losses)
        assert gradients_flow(pool, run.policy, hooks, run.config.algorithm) == (
            True,
            "a finite gradient reaches all 4 trainable tensors",
        )
        assert len(asked) == count


def test_weights_that_no_loss_reaches_are_counted_over_all_of_them(run: Run) -> None:
    pool = collect_rollouts(run, 0, Timer(CPU))
    hooks, asked = yielding(reaching("0.weight"), reaching("2.weight"), reaching("0.weight"))
    finding = gradients_flow(pool, run.policy, hooks, run.config.algorithm)
    assert finding == (False, "2 of 4 trainable weights get no gradient, the first transformer.0.bias")
    assert len(asked) == 3


def test_a_broken_gradient_in_a_later_loss_is_found_while_weights_are_unproven(run: Run) -> None:
    def broken(step: Step, batch: Experience, policy: Policy) -> Loss:
        return Loss(surrogate(step, batch, policy) * torch.inf)

    hooks, _ = yielding(reaching("0.weight"), broken)
    finding = gradients_flow(collect_rollouts(run, 0, Timer(CPU)), run.policy, hooks, run.config.algorithm)
    assert not finding.holds
    assert "is not finite" in finding.sentence


def test_the_terms_that_were_proved_are_named_in_order(run: Run) -> None:
    def termed(name: str) -> Make:
        def make(step: Step, batch: Experience, policy: Policy) -> Loss:
            part = reaching("0.bias" if name == "pull" else "2.bias")(step, batch, policy)
            return part.add_term(name, 0.5, policy.evaluate(step).velocity.square().flatten(1).mean(1))

        return make

    hooks, _ = yielding(reaching("0.weight"), termed("pull"))
    pool = collect_rollouts(run, 0, Timer(CPU))
    assert (
        gradients_flow(pool, run.policy, hooks, run.config.algorithm)[1]
        == "a finite gradient reaches all 4 trainable tensors, pull too"
    )
    hooks, _ = yielding(
        lambda s, b, p: termed("kl")(s, b, p).add_term("anchor", 2.0, p.parameters["transformer.2.bias"].sum() * b.advantages)
    )
    sentence = gradients_flow(pool, run.policy, hooks, run.config.algorithm)[1]
    assert sentence == "a finite gradient reaches all 4 trainable tensors, anchor too, kl too"


class Groupwise(AlgorithmConfig):
    """Of an algorithm that compares the members of a group."""

    groupwise: ClassVar[bool] = True

    def build(self, label: str) -> object:
        return object()


@pytest.mark.parametrize(
    ("batch_size", "groups"),
    [(1, [2]), (3, [2]), (4, [2]), (7, [2]), (8, [0, 2]), (12, [0, 2, 3]), (16, [0, 1, 2, 3]), (99, [0, 1, 2, 3])],
)
def test_update_is_given_whole_groups_the_loudest_first(run: Run, batch_size: int, groups: list[int]) -> None:
    pool = collect_rollouts(run, 0, Timer(CPU))
    loud = torch.tensor([[0.0, -2.0, 0.1, 0.0], [0.3, -0.3, 0.2, 0.0], [0.1, 3.0, 0.0, 0.0], [1.0, 0.5, 0.0, -1.5]])
    experience = replace(pool.experience, advantages=loud.flatten(), batch_size=batch_size)
    hooks, asked = yielding(sound)
    assert gradients_flow(Rollouts(experience), run.policy, hooks, Groupwise()).holds
    assert asked[0].groups.tolist() == [group for group in groups for _ in range(4)]
    assert asked[0].plan.keys == tuple(key for i, key in enumerate(experience.plan.keys) if i // 4 in groups)
    assert asked[0].batch_size == batch_size


def test_the_ratio_is_one_under_the_weights_that_drew(prepared: Prepared) -> None:
    average = {"name": "constant", "decay": 0.5}
    run = prepared({"model": {"name": "net", "train": "full"}, "sampling": {"ema": average}})
    with torch.no_grad():
        for parameter in run.policy.parameters.values():
            parameter.add_(0.1)
    run.policy.mark_changed()
    run.policy.iteration_finished(0)
    pool = collect_rollouts(run, 1, Timer(CPU))
    assert replayed(run, pool.experience).holds
    # the present weights give another
    assert not replayed(run, replace(pool.experience, plan=replace(pool.experience.plan, weights=None))).holds
    said = list(preflight(pool, run.policy, run.assembly.hooks, run.config))
    assert len(said) == 4


class Bounded(AlgorithmConfig):
    """The toy's losses, whose ratio these options bound."""

    trust_region: ClassVar[Mapping[str, tuple[str, ...]]] = {"ratio/max_deviation": ("clip_low", "clip_high")}

    clip_low: float | None = None
    clip_high: float | None = None

    def build(self, label: str) -> object:
        raise AssertionError("the run has been built")


class Unreported(Bounded):
    trust_region: ClassVar[Mapping[str, tuple[str, ...]]] = {"kl_old/max": ("clip_low",)}


def bounded(run: Run, algorithm: AlgorithmConfig, **training: Any) -> RunConfig:
    """The run's config with this algorithm's statement about itself."""
    chosen = run.config.training.model_copy(update=training)
    return run.config.model_copy(update={"algorithm": algorithm, "training": chosen})


def off_by(pool: Rollouts, deviation: float, rows: slice = slice(None)) -> Experience:
    """The samples, whose first recorded step has a ratio that is off by ``deviation``."""
    first, *others = pool.experience.steps
    assert first.log_prob is not None
    log_prob = first.log_prob.clone()
    log_prob[rows] -= deviation
    return replace(pool.experience, steps=(replace(first, log_prob=log_prob), *others))


WAYS = (
    "set sampling.batch_size (8) and training.batch_size (4) to one number, or training.recompute_log_prob to true, or "
    "training.precision (bf16) to float32"
)


@pytest.mark.parametrize(
    ("low", "high", "holds", "sentence"),
    [
        # of a deviation of 4e-4, which bf16 may have from rounding
        (1e-4, None, False, f" within 4.0e-04, more than algorithm.clip_low (0.0001): rounding alone cuts gradients; {WAYS}"),
        (1e-4, 0.1, False, f" within 4.0e-04, more than algorithm.clip_low (0.0001): rounding alone cuts gradients; {WAYS}"),
        (0.1, 1e-4, False, f" within 4.0e-04, more than algorithm.clip_high (0.0001): rounding alone cuts gradients; {WAYS}"),
        (1e-3, 0.1, True, f"than a fifth of algorithm.clip_low (0.001): rounding has a say in which gradients are cut; {WAYS}"),
        (3e-3, 3e-3, True, "replaying 2 recorded steps gives a ratio of 1 within 4.0e-04"),
        (None, None, True, "replaying 2 recorded steps gives a ratio of 1 within 4.0e-04"),
    ],
)
def test_the_algorithms_own_ratio_is_measured_against_its_own_clip_range(
    run: Run, low: float | None, high: float | None, holds: bool, sentence: str
) -> None:
    pool = collect_rollouts(run, 0, Timer(CPU))
    config = bounded(run, Bounded(clip_low=low, clip_high=high), precision="bf16")
    finding = replayed(run, off_by(pool, 4e-4), config)
    assert finding.holds is holds
    assert finding.sentence.endswith(sentence)
    assert finding.sentence.startswith("warning: ") is ("a fifth" in sentence)


def test_what_no_rounding_makes_is_another_mistake(run: Run) -> None:
    pool = collect_rollouts(run, 0, Timer(CPU))
    mismatch = (
        "the model does not compute the same in training as in sampling (dropout, another dtype, torch.compile, or a "
        "transformer run in two ways)"
    )
    finding = replayed(run, off_by(pool, 5e-3), bounded(run, Bounded(clip_low=0.1), precision="bf16"))
    assert not finding.holds
    assert finding.sentence.endswith(f"within 5.0e-03, more than 1e-03: {mismatch}; if it is rounding, {WAYS}")
    finding = replayed(run, off_by(pool, 5e-3), bounded(run, Bounded(clip_low=0.1)))
    assert not finding.holds
    assert finding.sentence.endswith(f"within 5.0e-03, more than 1e-05: {mismatch}")
    # log-densities that were computed again have no part in how batches are rounded
    finding = replayed(run, off_by(pool, 4e-4), bounded(run, Bounded(clip_low=1e-4), precision="bf16"), deviation=0.0)
    assert not finding.holds
    assert finding.sentence.endswith(f"more than algorithm.clip_low (0.0001): {mismatch}")


def test_one_sample_of_all_that_the_first_update_learns_from_is_found(run: Run) -> None:
    pool = collect_rollouts(run, 0, Timer(CPU))
    config = bounded(run, Bounded(clip_low=1e-4), precision="bf16", updates=1)
    for row in range(16):
        assert not replayed(run, off_by(pool, 4e-4, slice(row, row + 1)), config).holds
        assert not replayed(run, off_by(pool, float("nan"), slice(row, row + 1)), config).holds
    assert replayed(run, pool.experience, config).holds


def test_an_extreme_that_no_loss_has_bounds_nothing_and_is_refused(run: Run) -> None:
    finding = replayed(run, collect_rollouts(run, 0, Timer(CPU)).experience, bounded(run, Unreported(clip_low=1e-4)))
    assert finding == (False, "no loss has the extreme 'kl_old/max', which the algorithm's trust_region names; report it")


def test_log_densities_that_were_computed_again_tell_how_far_sampling_was_off(run: Run) -> None:
    experience = collect_rollouts(run, 0, Timer(CPU)).experience
    config = bounded(run, Bounded(clip_low=1e-4), precision="bf16", recompute_log_prob=True)
    finding = replayed(run, experience, config, deviation=4e-4)
    assert finding.holds
    assert finding.sentence.endswith(", where sampling's own log-densities are off by 4.0e-04")
    assert finding.sentence.startswith("replaying 2 recorded steps gives a ratio of 1 within ")
    finding = replayed(run, experience, config, deviation=4e-2)
    assert finding.holds
    assert finding.sentence.startswith("warning: replaying 2 recorded steps")
    assert "off by 4.0e-02, more than 1e-03: the model does not compute the same" in finding.sentence


def test_a_trust_region_of_options_that_there_are_not_is_told_to_its_author() -> None:
    with pytest.raises(
        TypeError, match=r"^Misspelt\.trust_region names 'clip_rang', which is none of its options; add a field$"
    ):

        class Misspelt(Bounded):
            trust_region: ClassVar[Mapping[str, tuple[str, ...]]] = {"ratio/max_deviation": ("clip_rang",)}
