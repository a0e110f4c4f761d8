from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from flowfactory import Canvas, hookimpl
from flowfactory.config.component import AlgorithmConfig
from flowfactory.config.schema import RunConfig
from flowfactory.errors import UserError
from flowfactory.experience import Experience, Loss
from flowfactory.flow.dynamics import ODE, FlowSDE
from flowfactory.hooks.calls import Hooks
from flowfactory.hooks.manager import make_manager
from flowfactory.testing import TwoParameter
from flowfactory.training.assembly import Assembly
from flowfactory.types import Conditions, Runtime, Samples, SamplingPlan, Trainable, Trajectory

Load = Callable[..., RunConfig]
SAMPLES = Samples(torch.rand(3, 1, 2, 2), ("a", "a", "b"), torch.tensor([0, 0, 1]), ({}, {}, {}))


class Given(AlgorithmConfig):
    """Builds what it is told to."""

    make: Any

    def build(self, label: str) -> object:
        return self.make(label)


def two_parameters() -> TwoParameter:
    return TwoParameter(0.1, 0.2)


class Learns:
    @hookimpl
    def update(self, experience: Experience) -> Iterator[Loss]:
        return iter(())


def assembled(load: Load, **components: object) -> Assembly:
    """The toy's config, with the components given in place of its own."""
    return Assembly(load().model_copy(update={key: Given(make=lambda _, c=c: c) for key, c in components.items()}))


def test_a_config_becomes_the_hooks_of_its_components(load: Load) -> None:
    made = Assembly(load({"evaluation": {"rewards": {"held": "bright"}}}))
    assert isinstance(made.dynamics, FlowSDE)
    assert isinstance(made.evaluation_dynamics, ODE)
    assert made.rewards.labels == ("bright",)
    assert made.evaluation_rewards.labels == ("held",)
    assert isinstance(made.hooks.load(Runtime(torch.device("cpu"), torch.float32)), Trainable)


def test_the_training_rewards_evaluate_where_no_others_are_named(load: Load) -> None:
    made = Assembly(load())
    assert made.evaluation_rewards is made.rewards


def test_no_weight_is_read(load: Load) -> None:
    class Reads(TwoParameter):
        @hookimpl
        def load(self, runtime: Runtime) -> Trainable:
            raise AssertionError("weights were read")

    assembled(load, model=Reads(0.1, 0.2))


def override(self: object, **_: object) -> None: ...


@pytest.mark.parametrize("hook", ["load", "encode", "sample", "log_prob"])
def test_an_override_without_the_marker_is_found_out(hook: str, load: Load) -> None:
    unmarked = type("Unmarked", (TwoParameter,), {hook: override})
    with pytest.raises(UserError) as refused:
        assembled(load, model=unmarked(0.1, 0.2))
    line = inspect.getsourcelines(override)[1]
    place = f"override (test_assembly.py line {line})"
    assert str(refused.value) == f"model: {place} is not marked and would never be called; write @hookimpl above it"


def test_an_algorithm_without_update_is_found_out(load: Load) -> None:
    class Idle:
        pass

    with pytest.raises(
        UserError,
        match=r"^algorithm: Idle \(test_assembly\.py line \d+\) does not implement update; write the method and mark it",
    ):
        assembled(load, algorithm=Idle())


def test_a_misspelt_hook_is_found_out(load: Load) -> None:
    class Misspelt(Learns):
        @hookimpl
        def iteration_finnished(self, iteration: int) -> None: ...

    with pytest.raises(
        UserError,
        match=r"^algorithm: Misspelt\.iteration_finnished \(test_assembly\.py line \d+\) is marked with @hookimpl, "
        r"and no hook is called 'iteration_finnished'; did you mean 'iteration_finished'\?$",
    ):
        assembled(load, algorithm=Misspelt())


def test_a_misspelt_argument_is_found_out(load: Load) -> None:
    class Misspelt:
        @hookimpl
        def update(self, experience: Experience, polcy: object) -> Iterator[Loss]:
            return iter(())

    with pytest.raises(
        UserError, match=r"^algorithm: Misspelt\.update \(test.*\): update gives no 'polcy'; did you mean 'policy'\?$"
    ):
        assembled(load, algorithm=Misspelt())


def test_two_implementations_of_what_wants_one_are_found_out(load: Load) -> None:
    class Draws(Learns):
        @hookimpl
        def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
            return Trajectory(torch.zeros(1), torch.zeros(1), torch.ones(2))

    with pytest.raises(UserError) as refused:
        assembled(load, algorithm=Draws())
    assert str(refused.value) == (
        "sample is implemented by model and by algorithm; exactly one may, others wrap (wrapper=True)"
    )


def test_a_wrapper_stands_around_the_one_implementation(load: Load) -> None:
    order = []

    class Model(TwoParameter):
        @hookimpl
        def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
            order.append("model")
            return Trajectory(torch.zeros(1), torch.ones(1), torch.ones(2))

    class Wraps(Learns):
        @hookimpl(wrapper=True)
        def sample(self, conditions: Conditions) -> Any:
            order.append("before")
            drawn = yield
            order.append("after")
            return drawn

    made = assembled(load, model=Model(0.1, 0.2), algorithm=Wraps())
    plan = SamplingPlan(2, Canvas(4, 4), 1.0, made.dynamics, 0, 0)
    assert made.hooks.sample(Conditions(()), plan).latents.tolist() == [1.0]
    assert order == ["before", "model", "after"]


def test_a_wrapper_alone_is_no_implementation(load: Load) -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def update(self) -> Any:
            return (yield)

    with pytest.raises(UserError, match=r"^algorithm: Wraps \(test_assembly\.py line \d+\) does not implement update"):
        assembled(load, algorithm=Wraps())


def test_sampling_keeps_no_graph() -> None:
    class Model(TwoParameter):
        @hookimpl
        def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
            return Trajectory(self.flow.p * torch.ones(1), torch.ones(1), torch.ones(2))

    hooks = Hooks(make_manager({"model": Model(0.1, 0.2)}))
    plan = SamplingPlan(2, Canvas(4, 4), 1.0, ODE(), 0, 0)
    assert not hooks.sample(Conditions(()), plan).media.requires_grad


def test_a_plan_that_no_algorithm_changes_is_itself() -> None:
    plan = SamplingPlan(2, Canvas(4, 4), 1.0, ODE(), 0, 0)
    assert Hooks(make_manager({"algorithm": Learns()})).plan(3, plan) is plan


def test_components_that_are_equal_are_refused_in_a_sentence() -> None:
    @dataclass
    class Equal:
        scale: float = 1.0

        @hookimpl
        def iteration_finished(self, iteration: int) -> None: ...

    with pytest.raises(UserError, match=r"^b: [^\n]*; components must compare by identity, as plain classes do$"):
        make_manager({"a": Equal(), "b": Equal()})
