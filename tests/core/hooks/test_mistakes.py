"""What authors of components get wrong, and the line that each is told."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory import Canvas, hookimpl
from flowfactory.config.component import ComponentConfig
from flowfactory.config.idle_keys import idle_keys
from flowfactory.config.loading import load
from flowfactory.errors import RunError, UserError
from flowfactory.experience import Experience, Loss
from flowfactory.flow.dynamics import ODE
from flowfactory.hooks.building import build
from flowfactory.hooks.calls import Hooks
from flowfactory.hooks.manager import make_manager
from flowfactory.policy import REFERENCE, At
from flowfactory.rewards.calls import RewardComponent
from flowfactory.rewards.scoring import Rewards
from flowfactory.testing import TwoParameter
from flowfactory.types import Conditions, Prompt, Runtime, Samples, SamplingPlan, Step

SAMPLES = Samples(torch.rand(3, 1, 2, 2), ("a", "a", "b"), torch.tensor([0, 0, 1]), ({}, {}, {}))
PLAN = SamplingPlan(2, Canvas(4, 4), 1.0, ODE(), 0, 0)
ANY: Any = None


def place(function: Callable[..., Any]) -> str:
    return f"{function.__qualname__} (test_mistakes.py line {inspect.getsourcelines(function)[1]})"


class Raises(ComponentConfig):
    def build(self, label: str) -> object:
        return {}[label]


class ReturnsNothing(ComponentConfig):
    def build(self, label: str) -> object:
        Glow()
        return None


class ReturnsTheClass(ComponentConfig):
    def build(self, label: str) -> object:
        return Glow


class TakesNothing(ComponentConfig):
    def build(self) -> object:  # type: ignore[override]
        return Glow()


class Ends(ComponentConfig):
    def build(self, label: str) -> object:
        sys.exit(0)


class Yields(ComponentConfig):
    def build(self, label: str) -> object:
        yield Glow()


class ReturnsItself(ComponentConfig):
    def build(self, label: str) -> object:
        return self


class Glow:
    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        return {"x": samples.media.flatten(1).mean(1)}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (Raises, r"KeyError: 'x' \(test_mistakes\.py line \d+\)"),
        (ReturnsNothing, "returned nothing; return the component"),
        (ReturnsTheClass, r"returned the class Glow; return one of it, as Glow\(…\)"),
        (TakesNothing, r"TypeError: .*takes 1 positional argument but 2 were given; write build\(self, label\)"),
        (Ends, r"SystemExit: 0 \(test_mistakes\.py line \d+\)"),
        (Yields, "returned a generator; return the component"),
        (ReturnsItself, "returned the options themselves; return the component"),
    ],
)
def test_what_build_gets_wrong_is_told_with_its_line(config: type[ComponentConfig], told: str) -> None:
    with pytest.raises(UserError, match=rf"^x: {re.escape(place(config.build))}:? {told}$"):
        build(config(), "x")


class MarksHalf(Glow):
    def prepare_reward(self, device: torch.device) -> None: ...


class MarksNothing:
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        return {}


class Misspells:
    @hookimpl
    def compute_rewards(self, samples: Samples) -> dict[str, Tensor]:
        return {}


class MisspellsTheArgument:
    @hookimpl
    def compute_reward(self, sampels: Samples) -> dict[str, Tensor]:
        return {}


class TakesAfterAStar:
    @hookimpl
    def compute_reward(self, *, samples: Samples) -> dict[str, Tensor]:
        return {}


class WrapsWithoutYield(Glow):
    @hookimpl(wrapper=True)
    def prepare_reward(self) -> None: ...


class Asynchronous:
    @hookimpl
    async def compute_reward(self, samples: Samples) -> Any:
        return {"x": torch.ones(3)}


UNMARKED = "is not marked and would never be called; write @hookimpl above it"


@pytest.mark.parametrize(
    ("component", "method", "told"),
    [
        (MarksHalf, "prepare_reward", UNMARKED),
        (MarksNothing, "compute_reward", UNMARKED),
        (
            Misspells,
            "compute_rewards",
            "is marked with @hookimpl, and no hook is called 'compute_rewards'; did you mean 'compute_reward'?",
        ),
        (Asynchronous, "compute_reward", "is async and would never run; write def without async"),
        (MisspellsTheArgument, "compute_reward", "compute_reward gives no 'sampels'; did you mean 'samples'?"),
        (TakesAfterAStar, "compute_reward", "'samples' stands after a * and is never given; remove the *"),
        (
            WrapsWithoutYield,
            "prepare_reward",
            "is to wrap prepare_reward and has no yield; write 'result = yield' and return the result",
        ),
    ],
)
def test_a_hook_that_would_never_be_called_is_told_with_its_line(component: Any, method: str, told: str) -> None:
    class Config(ComponentConfig):
        def build(self, label: str) -> object:
            return component()

    with pytest.raises(UserError, match=rf"^x: {re.escape(place(getattr(component, method)))}:? {re.escape(told)}$"):
        RewardComponent("x", Config())


class Helpful(Glow):
    """Methods of its own whose names are hooks of other components, one of its own that takes something else, and more."""

    def load(self, path: str) -> None: ...
    def encode(self, prompts: list[str]) -> None: ...
    def run_finished(self, how: str = "") -> None: ...
    @property
    def update(self) -> str:
        raise AssertionError("a property was asked")

    @hookimpl(optionalhook=True)
    def a_later_hook(self, samples: Samples) -> None: ...
    @hookimpl(specname="iteration_finished")
    def told(self, iteration: int, loud: bool = False) -> None: ...
    @staticmethod
    @hookimpl
    def run_started(run: object) -> None: ...


def test_what_only_looks_like_a_mistake_passes() -> None:
    make_manager({"x": Helpful()})


class SaysNothing:
    @hookimpl
    def compute_reward(self, samples: Samples) -> None:
        samples.media.mean()


def test_scores_that_are_not_returned_are_told() -> None:
    class Config(ComponentConfig):
        def build(self, label: str) -> object:
            return SaysNothing()

    told = rf"^{re.escape(place(SaysNothing.compute_reward))} returned nothing; return {{label: scores \[B\]}}$"
    with pytest.raises(RunError, match=told):
        RewardComponent("x", Config()).compute(SAMPLES)


class Changes:
    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        return {"x": samples.media.mul_(0.5).flatten(1).mean(1)}


class YieldsScores:
    @hookimpl
    def compute_reward(self, samples: Samples) -> Any:
        yield torch.ones(3)


class Leaves:
    @hookimpl
    def compute_reward(self, samples: Samples) -> Any:
        sys.exit(0)


@pytest.mark.parametrize("concurrent", [False, True])
@pytest.mark.parametrize(
    ("reward", "told"),
    [
        (Changes, "changed the pictures, which other rewards see too; work on samples.media.clone()"),
        (YieldsScores, "yields; return the scores instead"),
        (Leaves, "SystemExit: 0 (test_mistakes.py line "),
    ],
)
def test_a_reward_that_spoils_or_ends_a_run_is_told(reward: Any, told: str, concurrent: bool) -> None:
    class Config(ComponentConfig):
        concurrent: bool

        def build(self, label: str) -> object:
            return reward()

    with pytest.raises(RunError) as refused:
        Rewards({"x": Config(concurrent=concurrent)})(replace(SAMPLES, media=SAMPLES.media.clone()))
    assert str(refused.value).startswith("reward 'x': ")
    assert told in str(refused.value)


class EndsTheRun:
    @hookimpl
    def update(self, experience: Experience) -> Iterator[Loss]:
        yield Loss(torch.ones(2))
        sys.exit(0)

    @hookimpl
    def run_finished(self) -> None:
        sys.exit(0)


def test_nobody_ends_the_process_as_if_the_run_were_done() -> None:
    hooks = Hooks(make_manager({"algorithm": EndsTheRun()}))
    asked = ((lambda: [*hooks.update(ANY, ANY)], EndsTheRun.update), (lambda: hooks.run_finished(ANY), EndsTheRun.run_finished))
    for ask, method in asked:
        told = rf"^algorithm: {re.escape(place(method))}: SystemExit: 0 \(.*line \d+\); raise an error instead$"
        with pytest.raises(RunError, match=told):
            ask()


class Watches:
    def __init__(self, ends: bool = False) -> None:
        self.ends = ends

    @hookimpl
    def iteration_finished(self, iteration: int) -> None:
        if self.ends:
            sys.exit(0)

    @hookimpl
    def run_finished(self) -> None:
        self.iteration_finished(0)


class Around:
    @hookimpl(wrapper=True)
    def iteration_finished(self, iteration: int) -> Any:
        return (yield)


@pytest.mark.parametrize("ending", [0, 1, 2])
def test_of_several_observers_the_one_that_ends_the_process_is_named(ending: int) -> None:
    observers = {f"observer {i}": Watches(ends=i == ending) for i in range(3)}
    hooks = Hooks(make_manager({**observers, "tracker": Around()}))
    for ask, name in (
        (lambda: hooks.iteration_finished(1, {}), "iteration_finished"),
        (lambda: hooks.run_finished(ANY), "run_finished"),
    ):
        told = rf"^observer {ending}: Watches\.{name} \(test_mistakes\.py line \d+\): SystemExit: 0 \("
        with pytest.raises(RunError, match=told):
            ask()


class MarkedOutside:
    @hookimpl
    @classmethod
    def compute_reward(cls, samples: Samples) -> dict[str, Tensor]:
        return {}


def test_a_mark_outside_of_classmethod_is_told() -> None:
    with pytest.raises(UserError, match=r"is marked outside its @classmethod; write @classmethod above @hookimpl$"):
        make_manager({"x": MarkedOutside()})


class Returns:
    @hookimpl
    def update(self, experience: Experience) -> Any:
        return Loss(torch.ones(2))


class Forgets:
    @hookimpl
    def plan(self, plan: SamplingPlan) -> Any:
        plan.recorded.union({1})

    @hookimpl
    def update(self, experience: Experience) -> Any:
        return None


class YieldsTensors:
    @hookimpl
    def update(self, experience: Experience) -> Iterator[Any]:
        yield torch.ones(2)


class YieldsTheMean:
    @hookimpl
    def update(self, experience: Experience) -> Iterator[Loss]:
        yield Loss(torch.ones(()))


@pytest.mark.parametrize(
    ("algorithm", "told"),
    [
        (Returns, "returned a Loss; yield one flowfactory.Loss after the other"),
        (Forgets, "returned nothing; yield one flowfactory.Loss after the other"),
        (YieldsTensors, "yielded a Tensor; yield one flowfactory.Loss after the other"),
        (YieldsTheMean, "yielded a Loss with values []; give one value a sample, [b], and leave the mean to core"),
    ],
)
def test_an_update_that_does_not_yield_losses_is_told(algorithm: Any, told: str) -> None:
    hooks = Hooks(make_manager({"algorithm": algorithm()}))
    with pytest.raises(UserError, match=rf"^algorithm: {re.escape(place(algorithm.update))} {re.escape(told)}$"):
        [*hooks.update(ANY, ANY)]


ONE = Step(torch.ones(1, 2), torch.ones(1), Conditions(({},)), 1.0, ODE())
NO_COMPARISONS = [
    (ONE, "a Step"),
    ((ONE, {"reference": REFERENCE}), "(Step, {'reference': str})"),
    ((ONE, {"reference": At(REFERENCE), "old": ("old", None)}), "(Step, {'reference': At, 'old': tuple})"),
    ((ONE, "reference"), "(Step, str)"),
    ((ONE, None), "(Step, NoneType)"),
    ((ONE,), "(Step)"),
    ((None, {"reference": At(REFERENCE)}), "(NoneType, {'reference': At})"),
    ((ONE, {"reference": At(REFERENCE)}, {}), "(Step, {'reference': At}, {})"),
]


class Names:
    def __init__(self, *named: Any) -> None:
        self.named = named

    @hookimpl
    def comparisons(self, experience: Experience) -> Any:
        for one in self.named:
            sys.exit(0) if one is SystemExit else None
            yield one


@pytest.mark.parametrize(("named", "told"), NO_COMPARISONS, ids=[told for _, told in NO_COMPARISONS])
def test_a_comparison_that_is_none_is_told(named: Any, told: str) -> None:
    hooks = Hooks(make_manager({"algorithm": Names(named)}))
    advice = "yield a step and what is compared there, such as (step, {'reference': At(REFERENCE)}), one pair for each call"
    line = f"algorithm: {place(Names.comparisons)} yielded {told}; {advice} of policy.compare"
    with pytest.raises(UserError, match=rf"^{re.escape(line)}$"):
        [*hooks.comparisons(ANY)]


def test_comparisons_are_let_through_as_they_are() -> None:
    named: list[Any] = [(ONE, {"reference": At(REFERENCE, 2.0)}), (ONE, {})]
    assert [*Hooks(make_manager({"algorithm": Names(*named)})).comparisons(ANY)] == named


def test_an_exit_while_comparisons_are_named_is_told() -> None:
    hooks = Hooks(make_manager({"algorithm": Names(SystemExit)}))
    with pytest.raises(RunError, match=r"^algorithm: Names\.comparisons \(test_mistakes\.py line \d+\): SystemExit: 0 \("):
        [*hooks.comparisons(ANY)]


def test_losses_in_a_list_are_as_good() -> None:
    class Lists:
        @hookimpl
        def update(self, experience: Experience) -> Any:
            return [Loss(torch.ones(2))]

    assert len([*Hooks(make_manager({"algorithm": Lists()})).update(ANY, ANY)]) == 1


def test_a_plan_that_is_not_returned_is_told() -> None:
    hooks = Hooks(make_manager({"algorithm": Forgets()}))
    with pytest.raises(UserError, match=rf"^algorithm: {re.escape(place(Forgets.plan))} returned nothing; return the plan$"):
        hooks.plan(0, PLAN)


class Half(TwoParameter):
    """A model that returns nothing of what it makes."""

    @hookimpl
    def load(self, runtime: Runtime) -> Any: ...
    @hookimpl
    def encode(self, prompts: list[Prompt]) -> Any: ...
    @hookimpl
    def log_prob(self, step: Step) -> Any:
        return torch.ones(2)


class Swallows:
    @hookimpl(wrapper=True)
    def sample(self) -> Any:
        yield


def test_a_model_that_answers_with_something_else_is_told() -> None:
    hooks = Hooks(make_manager({"model": Half(0.1, 0.2)}))
    for ask, method, told in (
        (lambda: hooks.load(ANY), Half.load, "returned nothing; return a flowfactory.Trainable"),
        (lambda: hooks.encode([], ANY), Half.encode, "returned nothing; yield one mapping of tensors a prompt"),
        (lambda: hooks.log_prob(ANY), Half.log_prob, "returned a Tensor; return a flowfactory.Evaluation"),
    ):
        with pytest.raises(UserError, match=rf"^model: {re.escape(place(method))} {told}$"):
            ask()


def test_a_wrapper_that_keeps_the_result_is_told() -> None:
    class Draws(TwoParameter):
        @hookimpl
        def sample(self, conditions: Conditions) -> Any:
            return None

    hooks = Hooks(make_manager({"model": Draws(0.1, 0.2), "algorithm": Swallows()}))
    with pytest.raises(
        UserError, match=r"^model: \S*Draws\.sample \(.*\) within algorithm: Swallows\.sample \(.*\) returned nothing; "
    ):
        hooks.sample(Conditions(()), PLAN)


CHECKS = """
from pydantic import field_validator, model_validator
from flowfactory import ComponentConfig, hookimpl
class Config(ComponentConfig):
    strength: int = 1
    def build(self, label): ...
    def check(self, run):
        if self.strength < 4:
            run.nothing
        return "a sentence"
    @model_validator(mode="after")
    def whole(self):
        if self.strength != 5:
            return self
    @field_validator("strength")
    def positive(cls, value):
        return {1: 1, 4: 4, 5: 5}[value]
@hookimpl
def register_components(register):
    register("reward", "glow", Config)
"""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {},
            "rewards.x: Config.check (p.py line 7): AttributeError: 'RunConfig' object has no attribute ",
        ),
        (
            {"strength": 4},
            "rewards.x: Config.check (p.py line 7) returned a str; raise ValueError with the sentence, and return nothing",
        ),
        ({"strength": 5}, "rewards.x: a validator of its options returns None; end it with 'return self'"),
        ({"strength": 3}, "a plugin's options cannot be checked: KeyError: 3 (p.py line 17)"),
    ],
)
def test_checks_of_options_that_fail_are_told_with_their_line(
    options: dict[str, int], told: str, config_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "p.py").write_text(CHECKS)
    file = config_file({"rewards": {"x": {"name": "glow", **options}}})
    with pytest.raises(UserError) as refused:
        load(file, plugins=[tmp_path / "p.py"])
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return run.nothing", r"AttributeError: 'RunConfig' object has no attribute 'nothing' \(p\.py line 6\)"),
        ("return 3", "TypeError: 'int' object is not iterable"),
        ("return 'a sentence'", "answers with something else than sentences; yield one text after the other"),
    ],
)
def test_remarks_that_fail_are_told_with_their_line(
    body: str, told: str, config_file: Callable[..., Path], tmp_path: Path
) -> None:
    lines = ["from flowfactory import ComponentConfig, hookimpl", "class Config(ComponentConfig):"]
    lines += ["    def build(self, label): ...", "", "    def remarks(self, run):", f"        {body}", "@hookimpl"]
    lines += ["def register_components(register):", "    register('reward', 'glow', Config)"]
    (tmp_path / "p.py").write_text("\n".join(lines))
    config = load(config_file({"rewards": {"x": "glow"}}), plugins=[tmp_path / "p.py"])
    with pytest.raises(UserError, match=rf"^Config\.remarks \(p\.py line 5\):? {told}$"):
        list(idle_keys(config))
