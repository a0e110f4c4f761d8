"""How a rank ends, what it tells the process that started it, and what that means for all. Imports no torch."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from flowfactory.control_characters import escape_controls, foreign_lines
from flowfactory.errors import Interrupted, RunError, UserError

KINDS = {"user": 0, "run": 0, "unexpected": 0, "interrupted": 1, "stopped": 2, "died": 3, "lost": 4, "done": 5}
"""How a rank can end, and what counts when ranks end differently: what cannot be a consequence of how another one ended."""


@dataclass(frozen=True)
class Outcome:
    """How a rank ended: one of KINDS, its sentence, a traceback if one is to be shown, and when."""

    kind: str
    rank: int = 0
    message: str = ""
    details: str = ""
    time: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether the other ranks cannot go on."""
        return self.kind not in ("done", "interrupted")

    def as_json(self) -> str:
        """For :meth:`read`."""
        return json.dumps(asdict(self))

    @staticmethod
    def read(text: str | bytes) -> Outcome:
        """What :meth:`as_json` wrote."""
        return Outcome(**json.loads(text))

    @staticmethod
    def decisive(outcomes: Sequence[Outcome]) -> Outcome:
        """The one that the others follow from."""
        return min(outcomes, key=lambda outcome: (KINDS[outcome.kind], outcome.time))

    def conclude(self) -> None:
        """Raise what a run in one process would have raised; an unexpected error's traceback is printed first."""
        if self.kind == "user":
            raise UserError(*self.message.split("\n"))
        if self.kind in ("interrupted", "stopped"):
            raise Interrupted(self.message)
        if self.details:
            print(foreign_lines(self.details), file=sys.stderr)
        if self.failed:
            raise RunError(self.message)


def to_outcome(error: BaseException | None, rank: int) -> Outcome:
    """What ``error`` means when ``rank`` ends by it; None is that it is done."""
    if error is None:
        outcome = Outcome("done")
    elif _is_lost(error):
        outcome = Outcome("lost", message=f"rank {rank} lost the other ranks or waited too long for them: {_first_line(error)}")
    elif isinstance(error, Interrupted | UserError | RunError):
        kinds = {Interrupted: "interrupted", UserError: "user", RunError: "run"}
        # a line each, which :meth:`Outcome.conclude` takes apart
        message = "\n".join(map(escape_controls, error.sentences if isinstance(error, UserError) else [str(error)]))
        outcome = Outcome(next(kind for type_, kind in kinds.items() if isinstance(error, type_)), message=message)
    else:
        outcome = Outcome("unexpected", message=f"rank {rank} raised {type(error).__name__}: {_first_line(error)}")
    told = error is not None and outcome.kind in ("unexpected", "lost")
    details = "".join(traceback.format_exception(error)) if told else ""
    return replace(outcome, rank=rank, details=details, time=time.time())


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "no message")


def _is_lost(error: BaseException | None) -> bool:
    """Whether it comes of what another rank did; gloo raises plain RuntimeErrors, which begin with the name of its file."""
    distributed = sys.modules.get("torch.distributed")
    while error is not None:
        if distributed is not None and isinstance(error, distributed.DistError):
            return True
        if type(error) is RuntimeError and "/gloo/" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
