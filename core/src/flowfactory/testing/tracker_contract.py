"""The contract of a tracker, and of every observer of runs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowfactory.config.component import ComponentConfig
from flowfactory.config.loading import validate
from flowfactory.discovery.hook_checks import marked
from flowfactory.discovery.source_places import describe_exception
from flowfactory.discovery.specs import hookimpl
from flowfactory.errors import RunError, UserError
from flowfactory.hooks.building import build
from flowfactory.runs.train import train
from flowfactory.testing.run_suite import cache_of
from flowfactory.testing.two_parameter import settings


def check_tracker(config: ComponentConfig, folder: Path | None = None) -> None:
    """A tracker keeps its contract.

    It implements a hook, raises in none of them, and leaves the metrics as they are: in a run with evaluations and checkpoints,
    which is resumed, and in a run that fails. ``folder`` is where they lie, as ``run`` and ``failing``; a temporary one when
    left out.
    """
    with tempfile.TemporaryDirectory() as name:
        raw = settings(
            folder or Path(name),
            "policy-gradient",
            prompts={"heldout": str((folder or Path(name)) / "train.txt")},
            sampling={"dynamics": "flow-sde"},
            training={"iterations": 2},
            evaluation={"every": 1},
        )
        try:
            _watch(config, raw)
            _watch(config, raw, resume=True, iterations=3)
            _check_failing(config, raw)
        except (RunError, UserError) as error:
            raise AssertionError(str(error)) from error


def _watch(config: ComponentConfig, raw: Mapping[str, Any], resume: bool = False, **training: Any) -> None:
    """A run that a fresh one of the tracker observes to its end."""
    said: list[str] = []
    chosen = validate({**raw, "training": {**raw["training"], **training}})
    with cache_of(raw):
        try:
            train(chosen, resume, observers=[_make(config), _Metrics()], say=said.append)
        except (AssertionError, RunError, UserError):
            raise
        except Exception as error:
            raise AssertionError(f"a run ends by what the tracker raises: {describe_exception(error)}") from error
    _check_warnings(said)


def _check_failing(config: ComponentConfig, raw: Mapping[str, Any]) -> None:
    """A run that ends by an error of its own after its first iteration: the tracker hears of it and raises nothing."""
    said: list[str] = []
    out = Path(raw["output"]["dir"]).with_name("failing")
    chosen = validate({**raw, "output": {**raw["output"], "dir": str(out)}})
    with cache_of(raw):
        try:
            train(chosen, observers=[_make(config), _Fails()], say=said.append)
        except RunError as error:
            if _Fails.SENTENCE not in str(error):
                raise
        except Exception as error:
            raise AssertionError(f"where a run fails the tracker raises: {describe_exception(error)}") from error
        else:
            raise AssertionError("a run went on after it failed; does the tracker wrap a hook?")
    _check_warnings(said)


def _check_warnings(said: list[str]) -> None:
    told = [line for line in said if line.startswith("warning: observer")]
    assert not told, told[0].removeprefix("warning: ")


def _make(config: ComponentConfig) -> object:
    tracker = build(config, "tracker")
    assert any(marked(tracker)), (
        f"{type(tracker).__name__} implements no hook, so that it hears of nothing; mark with @hookimpl"
    )
    return tracker


class _Metrics:
    """Sees what the metrics are before and after the others were told; observers hear in the order opposite to theirs."""

    @hookimpl(wrapper=True)
    def iteration_finished(self, metrics: Mapping[str, float]) -> Any:
        before = dict(metrics)
        told = yield
        assert dict(metrics) == before, "the tracker changed the metrics that it was given, which others see too"
        return told


class _Fails:
    SENTENCE = "ended on purpose"

    @hookimpl
    def iteration_finished(self, iteration: int) -> None:
        if iteration == 1:
            raise RunError(self.SENTENCE)
