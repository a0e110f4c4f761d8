"""The nearest valid name to one that is not."""

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(name: object, names: Iterable[str], meant: Sequence[str] = ()) -> str:
    """``; did you mean 'x'?`` with what is ``meant`` or the nearest; what there is where nothing is near."""
    known = sorted(names)
    near = meant or difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {join_or([repr(each) for each in near])}?"
    return f"; there is {', '.join(known)}" if known else "; none is installed"


def join_or(words: Sequence[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words)
