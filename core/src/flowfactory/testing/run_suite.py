"""Runs of an algorithm from a config, in a second each, and what every algorithm's keep. They raise AssertionError.

``settings(folder, algorithm)`` makes the configs. What prompts are encoded to is kept beside the run, whose folder is named by
``output.dir``.
"""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from flowfactory.config.loading import validate
from flowfactory.errors import RunError, UserError
from flowfactory.policy.policy import Policy
from flowfactory.runs.checkpoints.load import read_trained
from flowfactory.runs.checkpoints.manifest import Manifest
from flowfactory.runs.checkpoints.shards import own_rows, read_index, read_rows
from flowfactory.runs.train import train as train_to_end
from flowfactory.testing.learning_bench import Learning, Weights
from flowfactory.testing.two_parameter import settings as make_settings
from flowfactory.training.iteration import collect
from flowfactory.training.metrics import Timer
from flowfactory.training.setup import Run, prepare_run

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """A run to its end: ``records`` of its iterations, the sentences that it ``said``, and its folder."""

    records: list[dict[str, Any]]
    said: list[str]
    folder: Path

    def weights(self, iteration: int) -> dict[str, Tensor]:
        """The trained weights that the checkpoint after ``iteration`` holds, by name."""
        return read_checkpoint(self.folder / "checkpoints" / f"{iteration:06d}", "present/")

    def kept(self, iteration: int) -> dict[str, Tensor]:
        """The weights that the policy kept, ``<kept name>/<name>``, in the checkpoint after ``iteration``."""
        return read_checkpoint(self.folder / "checkpoints" / f"{iteration:06d}", "kept/")


class Started:
    """A run with its weights in place, before its first iteration."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.policy: Policy = run.policy

    def draw(self, iteration: int) -> Learning:
        """What ``iteration`` draws under the present weights, with its advantages, or its records, ready to be learned from."""
        experience = collect(self._run, iteration, Timer(self.policy.device)).experience
        return Learning(self._run.assembly.hooks, self.policy, experience)


def train(settings: Settings, resume: bool = False, out: Path | None = None, **training: Any) -> Trained:
    """The run of ``settings`` to its end, into ``out`` where given; ``training`` is set on top of that section.

    UserError, RunError: as ``flowfactory run``.
    """
    chosen: dict[str, Any] = copy.deepcopy(dict(settings))
    chosen["training"] |= training
    if out is not None:
        chosen["output"]["dir"] = str(out)
    said: list[str] = []
    with cache_of(chosen):
        directory = train_to_end(validate(chosen), resume, say=said.append)
    return Trained(directory.records()[1:], said, directory.path)


def begin(settings: Settings) -> Started:
    """The run of ``settings``, started. UserError: as ``flowfactory run``."""
    with cache_of(settings):
        run = prepare_run(validate(settings))
        run.policy.teachers.read_checkpoint = read_trained
        run.assembly.hooks.run_started(run.info, run.policy)
    return Started(run)


def guided_learning(
    folder: Path,
    algorithm: Mapping[str, Any],
    start: Weights = (0.3, -0.2),
    batch_size: int = 4,
    guidance: float = 1.0,
    dynamics: str = "ode",
) -> Learning:
    """What the first iteration of ``algorithm`` draws at ``start`` under ``guidance``, on the flow that minds guidance.

    Three groups of four samples, in 4 steps of ``dynamics``. The negative prompt has seven letters, so that under guidance g
    the velocity is p x + q sigma (7 + g (l - 7)), where the prompt has l letters.
    """
    raw = make_settings(
        folder,
        algorithm,
        model={"name": "guided", "p": start[0], "q": start[1]},
        prompts={"negative": "seven l"},
        sampling={"groups": 3, "steps": 4, "guidance": guidance, "dynamics": dynamics},
        training={"batch_size": batch_size},
    )
    return begin(raw).draw(0)


def check_runs(settings: Settings, metrics: Iterable[str] = (), terms: Iterable[str] = ()) -> Trained:
    """The run of ``settings``, after it passed preflight and reported each of its iterations.

    ``terms`` are all those that the loss has, such as kl. They, the ``metrics``, the loss and the reward are finite in each
    record, and the gradient is above zero.
    """
    trained = train(settings)
    too = "".join(f", {term} too" for term in sorted(terms))
    wanted = f"preflight: a finite gradient reaches all 2 trainable tensors{too}"
    assert wanted in trained.said, f"preflight did not say {wanted!r} but {trained.said}"
    assert sum(line.startswith("preflight: ") for line in trained.said) == 4, "preflight did not say four sentences"
    numbers = [record["iteration"] for record in trained.records]
    assert numbers == list(range(1, settings["training"]["iterations"] + 1)), f"records are of the iterations {numbers}"
    for record in trained.records:
        for name in ("loss", "grad_norm", "reward/light/mean", *metrics, *terms):
            assert name in record, f"{name} is not reported"
            assert math.isfinite(record[name]), f"{name} is {record[name]}"
        assert record["grad_norm"] > 0, "the gradient is zero"
    return trained


def check_first_update(settings: Settings, values: Mapping[str, Any]) -> Trained:
    """The run of ``settings``, after its first record had just these ``values``, and its second others.

    With one update an iteration the first is at the weights that drew, where much is known by hand.
    """
    trained = train(settings)
    first, second, *_ = trained.records
    for name, value in values.items():
        assert name in first, f"{name} is not reported"
        assert first[name] == value, f"{name} of the first update is {first[name]}, not {value}"
        assert math.isfinite(second[name]), f"{name} of the second iteration is {second[name]}"
        assert second[name] != value, f"{name} of the second iteration is still {value}"
    return trained


def check_resumes_bit_for_bit(settings: Settings, stop_after: int = 1) -> Trained:
    """The run of ``settings``, after one that was stopped and resumed ended as it did: records and weights, to the bit.

    Both trained and kept weights count, and the trained ones moved after the stop.
    """
    last = settings["training"]["iterations"]
    out = Path(settings["output"]["dir"])
    whole = train(settings)
    train(settings, out=out.with_name("resumed"), iterations=stop_after)
    resumed = train(settings, resume=True, out=out.with_name("resumed"))
    told = f"resumed after iteration {stop_after} from"
    assert any(line.startswith(told) for line in resumed.said), f"it did not say {told!r}"
    assert _figures(resumed) == _figures(whole), "the records of a resumed run differ"
    for kind in ("weights", "kept"):
        found, expected = getattr(resumed, kind)(last), getattr(whole, kind)(last)
        assert set(found) == set(expected), f"the {kind} of a resumed run are {sorted(found)}, not {sorted(expected)}"
        for name, value in expected.items():
            assert torch.equal(found[name], value), f"{name} of a resumed run differs"
    for name, value in resumed.weights(stop_after).items():
        assert not torch.equal(resumed.weights(last)[name], value), f"{name} did not move after the stop"
    return whole


def check_records_no_step(settings: Settings) -> Trained:
    """The run of ``settings`` under flow-sde, after it trained without a recorded step."""
    settings = copy.deepcopy(dict(settings))
    settings["sampling"]["dynamics"] = "flow-sde"
    trained = train(settings)
    assert any("no step is recorded" in line for line in trained.said), "preflight replays recorded steps"
    experience = begin(settings).draw(0).experience
    assert len(experience.plan.stochastic) == settings["sampling"]["steps"] - 1, "all but the last step are stochastic"
    assert experience.steps == (), "steps are recorded"
    return trained


def check_refused(settings: Settings, pattern: str) -> None:
    """The config is refused in one line, in which ``pattern``, a regular expression, is found."""
    try:
        validate(settings)
    except UserError as error:
        _check_told(error, pattern)
    else:
        raise AssertionError(f"the config is accepted: {settings['algorithm']}")


def check_timesteps_options(settings: Settings) -> None:
    """An algorithm with training timesteps refuses what makes no sense, and takes as many as there are sampling steps.

    Each refusal is one line, before anything is loaded; bounds that too few sampling steps lie between stop the run.
    """
    steps = settings["sampling"]["steps"]
    there = r"algorithm\.timesteps\.count \({}\) is more than the {} sampling steps there are; lower it"
    refused: list[tuple[dict[str, Any], str]] = [
        ({"name": "discrete", "count": steps + 1}, there.format(steps + 1, steps)),
        ({"name": "discrete", "count": steps, "initial": False}, there.format(steps, steps - 1)),
        ({"name": "uniform", "low": 0.6, "high": 0.4}, r"low \(0\.6\) must be below high \(0\.4\)"),
        ({"name": "logit-normal", "low": 0.5, "high": 0.5}, r"low \(0\.5\) must be below high \(0\.5\)"),
        ({"name": "uniform", "count": 0}, r"algorithm\.timesteps\.count"),
        ({"name": "uniform", "initial": True}, r"algorithm\.timesteps\.initial: unknown key"),
    ]
    for timesteps, pattern in refused:
        check_refused(_with_algorithm(settings, timesteps=timesteps), pattern)
    out = Path(settings["output"]["dir"])
    for initial in (True, False):
        most = {"name": "discrete", "count": steps - (not initial), "initial": initial}
        made = train(_with_algorithm(settings, timesteps=most), out=out.with_name(f"initial-{initial}"), iterations=1)
        assert [record["iteration"] for record in made.records] == [1], "a run with as many times as steps does not train"
    low = 1 - 1.5 / steps  # between the second sigma and the third
    try:
        train(_with_algorithm(settings, timesteps={"name": "discrete", "count": 3, "low": low}), out=out.with_name("few"))
    except RunError as error:
        _check_told(error, rf"2 sampling steps lie between low {low} and high 1\.0, fewer than count 3")
    else:
        raise AssertionError("a run goes on with fewer sampling steps between its bounds than it wants times")


def check_refuses_another_sampler(settings: Settings) -> None:
    """An algorithm that chooses itself which weights draw refuses ``sampling.ema``."""
    sampling = {**settings["sampling"], "ema": {"name": "constant", "decay": 0.9}}
    check_refused({**settings, "sampling": sampling}, r"sampling\.ema: .* chooses itself which weights draw; leave it out$")


def check_refuses_more_updates_than_groups(settings: Settings) -> None:
    """An algorithm that compares the members of a group takes as many updates as there are groups, and no more."""
    groups = settings["sampling"]["groups"]
    validate({**settings, "training": {**settings["training"], "updates": groups}})
    more = {**settings, "training": {**settings["training"], "updates": groups + 1}}
    check_refused(more, rf"training\.updates \({groups + 1}\) is more than the {groups} groups there are")


def read_checkpoint(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin with ``prefix``, by what follows it."""
    index = read_index(Manifest.read(folder).shards(folder))
    wanted = {name: stored for name, stored in index.items() if name.startswith(prefix)}
    state = {name: torch.empty(stored.shape, dtype=stored.dtype) for name, stored in wanted.items()}
    read_rows(index, own_rows(state))
    return {name.removeprefix(prefix): value for name, value in state.items()}


def cache_of(settings: Settings) -> Any:
    """Within it prompts are cached beside the run of ``settings``."""
    cache = Path(settings["output"]["dir"]).with_name("cache")
    return mock.patch.dict(os.environ, {"FLOWFACTORY_CACHE": str(cache)})


def _with_algorithm(settings: Settings, **options: Any) -> dict[str, Any]:
    return {**settings, "algorithm": {**settings["algorithm"], **options}}


def _figures(trained: Trained) -> list[dict[str, Any]]:
    """The records without what differs from one run to the next."""
    return [
        {key: value for key, value in record.items() if not key.startswith("seconds/") and key != "peak_memory_mb"}
        for record in trained.records
    ]


def _check_told(error: Exception, pattern: str) -> None:
    assert re.search(pattern, str(error)), f"it says {str(error)!r}, in which {pattern!r} is not found"
    assert "\n" not in str(error), "it takes several lines"
