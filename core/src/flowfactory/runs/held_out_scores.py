"""What held-out scores decide in a run: which checkpoint is kept as the best, and whether the run ends early."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowfactory.checkpoint_names import list_checkpoints
from flowfactory.config.held_out_scores import best_score
from flowfactory.config.schema import RunConfig
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.errors import UserError
from flowfactory.runs.best_score import evaluated, find_best
from flowfactory.runs.directory import RunDirectory
from flowfactory.suggestions import did_you_mean
from flowfactory.types import Say

BEST = "best"
"""What stands for the best checkpoint on the command line, alone or as ``best:<score>``."""


class HeldOutScores:
    """A run's scores so far. They are the leading rank's, whose answers all ranks are given.

    Every rank calls :meth:`is_best` and :meth:`why_stop`.
    """

    def __init__(self, config: RunConfig, directory: RunDirectory, ranks: Ranks = ALONE) -> None:
        self._best, self._stop = best_score(config), config.training.early_stop
        self._checkpoints, self._ranks = directory.checkpoints, ranks
        wanted = self._best or self._stop
        self._records: list[dict[str, Any]] = directory.records() if wanted and ranks.leads else []

    def forget_after(self, iteration: int) -> None:
        """Forget the evaluations that are made again, of a run that goes on after ``iteration``; 0 is where it begins."""
        self._records = [record for record in self._records if 0 < iteration >= record["iteration"]]

    def add(self, number: int, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of iteration ``number``."""
        if (self._best or self._stop) and self._ranks.leads:
            names = {self._best, self._stop and self._stop.on}
            self._records.append({"iteration": number, **{name: metrics[name] for name in metrics if name in names}})

    def best_until(self, iteration: int) -> int | None:
        """The checkpoint that is to outlive the others when that of ``iteration`` is there. Asks no other rank."""
        if self._best is None:
            return None
        saved = {int(path.name) for path in list_checkpoints(self._checkpoints) if int(path.name) < iteration}
        best = find_best(evaluated(self._records, self._best), saved | {iteration})
        return best and best.iteration

    def is_best(self, number: int) -> bool:
        """Whether iteration ``number`` has the best score of all that can be kept, so that it is to be saved."""
        if self._best is None:
            return False
        return bool(self._ranks.broadcast(number > 0 and self.best_until(number) == number))

    def why_stop(self) -> str | None:
        """Why the run ends here, if it does: the score has not been better for as many evaluations as the patience is."""
        if self._stop is None:
            return None
        scores = evaluated(self._records, self._stop.on)
        best = find_best(scores)
        since = 0 if best is None else len(scores) - 1 - scores.index(best)
        told = None
        if since >= self._stop.patience:
            told = (
                f"stopped early after iteration {scores[-1].iteration}: {self._stop.on} has not been above {best} "
                f"for {since} evaluations"
            )
            if kept := self._best and self.best_until(self._records[-1]["iteration"]):
                told += f"; the best checkpoint is that of iteration {kept}"
        return self._ranks.broadcast(told)


def choose_checkpoint(
    directory: RunDirectory, config: RunConfig, wanted: int | str | None, say: Say, ranks: Ranks = ALONE
) -> int | None:
    """The iteration that ``--checkpoint`` means, as ``flowfactory.runs.checkpoints.lookup.find`` takes it.

    ``best``, or ``best:<score>``, is that with the best held-out score of those that are on the disk; ``say`` hears where a
    better one was not kept. Every one of the ``ranks`` calls it. UserError: there is none.
    """
    if not isinstance(wanted, str):
        return wanted
    try:
        answer: tuple[int | None, str] = (_best_there(directory, config, wanted.partition(":")[2], say), "")
    except UserError as error:
        answer = (None, str(error))
    iteration, problem = ranks.broadcast(answer)
    if problem:
        raise UserError(problem)
    return iteration


def _best_there(directory: RunDirectory, config: RunConfig, name: str, say: Say) -> int:
    records = directory.records()
    known = list(
        dict.fromkeys(key for record in records for key in record if key.startswith("eval/") and key.endswith("/mean"))
    )
    otherwise = "name an iteration with --checkpoint N, or take the newest"
    if not known:
        raise UserError(f"--checkpoint best: {directory.metrics} has no held-out score; {otherwise}")
    name = name or best_score(config) or (known[0] if len(known) == 1 else "")
    if not name:
        raise UserError(f"--checkpoint best: there are {len(known)} held-out scores; write best:{', or best:'.join(known)}")
    if name not in known:
        raise UserError(f"--checkpoint best: no held-out score called {name!r}{did_you_mean(name, known)}")
    scores = [each for each in evaluated(records, name) if each.iteration]
    saved = {int(path.name) for path in list_checkpoints(directory.checkpoints)}
    best = find_best(scores, saved)
    if best is None:
        told = f"{directory.checkpoints} holds no checkpoint of an iteration that was evaluated"
        raise UserError(f"--checkpoint best: {told}; {otherwise}, and train with output.keep_best")
    highest = find_best(scores)
    if highest is not None and highest.score > best.score:
        told = f"{name} was {highest}, of which no checkpoint was kept; the best there is has {best}"
        say(f"warning: {told}; train with output.keep_best")
    return best.iteration
