"""Where a run begins: at the first iteration, or after its newest whole checkpoint, and what is to be known of that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from flowfactory.runs.checkpoints.save import Checkpoints
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.edited_plugins import note_plugins
from flowfactory.runs.facts import add_facts, go_on
from flowfactory.runs.metrics_file import UNREADABLE
from flowfactory.runs.versions import versions
from flowfactory.training.setup import Run
from flowfactory.types import Say


def resume_run(
    run: Run, directory: RunDirectory, checkpoints: Checkpoints, require: Callable[[], None], resume: bool, say: Say
) -> int:
    """The iteration that is done, after the last whole checkpoint where there is one to resume from."""
    done = checkpoints.restore(run.policy, run.learner) if resume else None
    require()
    if done is not None:
        say(f"resumed after iteration {done} from {directory.checkpoints / f'{done:06d}'}")
        if run.ranks.leads:
            records = directory.records(say)  # which says what cannot be read
            if any(record["iteration"] > done for record in records):
                go_on(directory.facts)
            rate = next((record.get("lr") for record in records if record["iteration"] == done), None)
            _rewind(directory, done, say)
            note_plugins(directory.facts, run.config.plugins, say)
            for sentence in _remarks(run, directory.path, done, rate):
                say(sentence)
        return done
    if resume:
        say("nothing to resume from: starting at the first iteration")
    if run.ranks.leads:
        go_on(directory.facts)
        _rewind(directory, -1, say)
        add_facts(directory.facts, {"versions": versions()})
        note_plugins(directory.facts, run.config.plugins, lambda _: None)
    return 0


def _rewind(directory: RunDirectory, iteration: int, say: Say) -> None:
    if unread := directory.rewind(iteration):
        lines = "a line that cannot be read was" if unread == 1 else f"{unread} lines that cannot be read were"
        say(f"warning: {lines} moved from {directory.metrics.name} to {directory.metrics.with_name(UNREADABLE)}")


def _remarks(run: Run, path: Path, done: int, rate: float | None) -> Iterator[str]:
    """What a run that goes on after iteration ``done``, whose learning rate was ``rate``, is to be told."""
    training = run.config.training
    if done >= training.iterations:
        more = "more than" if done > training.iterations else "as many as"
        told = f"which is {more} training.iterations {training.iterations}"
        yield f"{path} has {done} iterations already, {told}: nothing is left to do"
        return
    planned = run.learner.rate
    if rate is not None and not math.isclose(rate, planned, rel_tol=1e-6, abs_tol=1e-300):
        yield (
            f"warning: training.decay: {training.decay} reaches over all iterations, which are {training.iterations} now: the "
            f"learning rate was {rate:.3g} in iteration {done}, and goes on at {run.learner.next_rate:.3g}"
        )
