"""The nearest valid name to one that is not."""

import difflib
from collections.abc import Iterable, Sequence

LONGEST = 100
"""Characters of a name that is looked for among others."""


def did_you_mean(name: object, names: Iterable[str], meant: Sequence[str] = ()) -> str:
    """``; did you mean 'x'?`` with what is ``meant`` or the nearest; what there is where nothing is near."""
    known = sorted(names)
    near = meant or nearest(str(name), known)
    if near:
        return f"; did you mean {join_or([repr(each) for each in near])}?"
    return f"; there is {', '.join(known)}" if known else "; none is installed"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The one of ``known`` that is most like ``name``, if any is; a name of more than a line is like none."""
    return difflib.get_close_matches(name, known, n=1, cutoff=cutoff) if len(name) <= LONGEST else []


def join_or(words: Sequence[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words)
