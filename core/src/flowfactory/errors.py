"""The ways a run ends early, each with one sentence for the person who started it."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user wrote: the command line prints the sentence and exits with 2."""


class RunError(Exception):
    """Something is off with the training itself: the command line prints the sentence and exits with 1."""


class Interrupted(Exception):
    """The run was asked to stop, finished its iteration and saved it: the command line exits with 130."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or the list of what there is where nothing is near."""
    known = sorted(names)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there is {', '.join(known)}" if known else "; none is installed"
