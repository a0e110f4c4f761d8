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

KINDS = {
    "user": 0,
    "run": 0,
    "unexpected": 0,
    "memory": 0,
    "interrupted": 1,
    "stopped": 2,
    "died": 3,
    "device": 3,
    "lost": 4,
    "done": 5,
}
"""How a rank can end, and what counts when ranks end differently: what cannot be a consequence of how another one ended."""
RESTARTED = frozenset({"died", "device", "lost"})
"""What is nobody's mistake, and need not happen again."""

DEVICE_ERRORS = ("CUDA error: ", "CUDA driver error: ", "cuDNN error: ", "HIP error: ")
"""How torch begins what a driver or its libraries told it, where it raises a plain RuntimeError."""
DEVICE_FAULTS = (
    "uncorrectable",  # memory (Xid 48, 63, 64, 94, 95) or NVLink (Xid 74)
    "ecc error",
    "xid",
    "hardware",
    "unspecified launch failure",  # Xid 13, 43
    "illegal memory access",  # Xid 31
    "illegal instruction",
    "launch timed out",
    "unknown error",
    "busy or unavailable",  # fallen off the bus: Xid 79
    "_status_execution_failed",
    "_status_internal_error",
)
"""What such an error says where the device is at fault, or a kernel once: not a mistake in what it was asked to do."""
MEMORY_FAULTS = ("out of memory", "can't allocate memory", "_status_alloc_failed")
MISUSES = ("ncclinvalidusage", "ncclinvalidargument", "duplicate gpu")
"""What NCCL says of a mistake in how ranks were started."""


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
    elif (kind := fault(error)) == "lost":
        outcome = Outcome("lost", message=f"rank {rank} lost the other ranks or waited too long for them: {_first_line(error)}")
    elif kind == "device":
        outcome = Outcome("device", message=f"rank {rank} had a fault of its device: {_first_line(error)}")
    elif kind == "memory":
        told = f"rank {rank} ran out of memory: {_first_line(error)}"
        outcome = Outcome("memory", message=f"{told}; flowfactory estimate tells what would help")
    elif isinstance(error, Interrupted | UserError | RunError):
        kinds = {Interrupted: "interrupted", UserError: "user", RunError: "run"}
        # a line each, which :meth:`Outcome.conclude` takes apart
        message = "\n".join(map(escape_controls, error.sentences if isinstance(error, UserError) else [str(error)]))
        outcome = Outcome(next(kind for type_, kind in kinds.items() if isinstance(error, type_)), message=message)
    else:
        outcome = Outcome("unexpected", message=f"rank {rank} raised {type(error).__name__}: {_first_line(error)}")
    shown = error is not None and outcome.kind in ("unexpected", "memory", "device", "lost")
    details = "".join(traceback.format_exception(error)) if shown else ""
    return replace(outcome, rank=rank, details=details, time=time.time())


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "no message")


def fault(error: BaseException | None) -> str | None:
    """What ``error``, or what it comes of, is: a lack of "memory", of the "device", that others were "lost"; else None.

    A lack of memory counts before a fault of the device, and that before a loss, which either may bring about. Judged by the
    types that torch raises, and where those are plain RuntimeErrors, as gloo's and older ones of CUDA are, by how it words
    them. What a plugin raises itself is none of these, unless it takes torch's types, or a plain RuntimeError in its words.
    """
    found = set()
    while error is not None:
        found.add(_fault_of_one(error))
        error = error.__cause__ or error.__context__
    return next((kind for kind in ("memory", "device", "lost") if kind in found), None)


def _fault_of_one(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return "memory"
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    text = str(error)
    told, plain = text.lower(), type(error) is RuntimeError
    if isinstance(error, torch.distributed.DistError) or (plain and "/gloo/" in text):
        if any(words in told for words in MEMORY_FAULTS):
            return "memory"
        return None if any(words in told for words in MISUSES) else "lost"
    of_device = isinstance(error, torch.AcceleratorError) or (plain and text.startswith(DEVICE_ERRORS))
    of_host = plain and text.startswith("[enforce fail at alloc_cpu")
    if isinstance(error, torch.OutOfMemoryError) or ((of_device or of_host) and any(words in told for words in MEMORY_FAULTS)):
        return "memory"
    # the first line alone: those behind it are torch's advice
    return "device" if of_device and any(words in _first_line(error).lower() for words in DEVICE_FAULTS) else None
