"""The contracts of dynamics and of trackers notice what they promise to notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flowfactory import ComponentConfig, flow, hookimpl
from flowfactory.testing import check_dynamics, check_tracker

Change = Callable[[Any], None]


def shown(change: Change) -> flow.FlowSDEConfig:
    """Flow-SDE, changed once it is built."""

    class ChangedConfig(flow.FlowSDEConfig):
        def build(self, label: str) -> Any:
            made = super().build(label)
            change(made)
            return made

    return ChangedConfig()


def moves(**changes: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Change:
    """Each part of a transition is changed by a function of it and of the latents."""

    def change(made: Any) -> None:
        right = made.transition

        def transition(velocity: Any, latents: Any, sigma: Any, following: Any) -> Any:
            moved = right(velocity, latents, sigma, following)
            return moved._replace(**{name: how(getattr(moved, name), latents) for name, how in changes.items()})

        made.transition = transition

    return change


def sets(**values: Any) -> Change:
    return lambda made: [setattr(made, name, value) for name, value in values.items()] and None


def doubles_density(made: Any) -> None:
    right = made.log_density
    made.log_density = lambda following, moved: right(following, moved) * following[0].numel()


@pytest.mark.parametrize("config", [flow.ODEConfig(), flow.CPSConfig(), flow.FlowSDEConfig(noise_level=5.0, num_sde_steps=1)])
def test_good_dynamics_are_let_through(config: Any) -> None:
    check_dynamics(config)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (sets(stochastic=False), "let both agree"),
        (sets(window=lambda steps, iteration, generator: [0]), "return a frozenset"),
        (sets(window=lambda steps, iteration, generator: frozenset({steps})), r"window names the steps \[8\]"),
        (sets(window=lambda steps, iteration, generator: frozenset()), "name at least one step"),
        (sets(window=lambda *_: frozenset(torch.randint(8, (3,)).tolist())), "draw with the one that is passed"),
        (moves(std=lambda std, latents: std.expand_as(latents)), "one for each sample is"),
        (moves(std=lambda std, latents: 0 * std), "std is zero in step 0"),
        (moves(mean=lambda mean, latents: mean / 0), "mean is not finite"),
        (moves(mean=lambda mean, latents: mean + latents.mean()), "moves otherwise beside others"),
        (moves(mean=lambda mean, latents: 1.001 * mean), "pass marginals=False"),
        (moves(std=lambda std, latents: 1.2 * std), "leads to noise of variance"),
        (doubles_density, "grows with the number of elements"),
    ],
)
def test_dynamics_with_a_fault_are_refused(change: Change, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        check_dynamics(shown(change))


def test_those_that_leave_the_path_on_purpose_may_say_so() -> None:
    check_dynamics(shown(moves(std=lambda std, latents: 1.2 * std)), marginals=False)


class TellsConfig(ComponentConfig):
    tracker: Any

    def build(self, label: str) -> object:
        return self.tracker()


class Deaf:
    def run_started(self, run: Any) -> None:
        """Without a mark."""


class Raises:
    @hookimpl
    def checkpoint_saved(self) -> None:
        raise ZeroDivisionError


class Changes:
    @hookimpl
    def iteration_finished(self, metrics: Any) -> None:
        metrics["mine"] = 1.0


class Forgets:
    @hookimpl
    def run_failed(self) -> None:
        raise AttributeError("no writer")


class Swallows:
    @hookimpl(wrapper=True)
    def iteration_finished(self) -> Any:
        try:
            return (yield)
        except BaseException:
            return None


@pytest.mark.parametrize(
    ("tracker", "told"),
    [
        (Deaf, "implements no hook"),
        (Raises, "ZeroDivisionError"),
        (Changes, "changed the metrics"),
        (Forgets, "run_failed: AttributeError: no writer"),
        (Swallows, "does the tracker wrap a hook"),
    ],
)
def test_a_tracker_with_a_fault_is_refused(tracker: type, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        check_tracker(TellsConfig(tracker=tracker))
