"""Work that ranks do apart, for hours perhaps: what each came to, told through the store of their group.

In a collective the others would give up after ``distributed.timeout``, however well the work goes.
"""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable
from typing import Any, TypeVar

from torch.distributed import DistStoreError, PrefixStore, distributed_c10d  # type: ignore[attr-defined]

from flowfactory.distributed.ranks import Ranks
from flowfactory.errors import RunError, UserError, to_plain

T = TypeVar("T")
Advance = Callable[[], None]
POLL_SECONDS = 0.2
_numbers = itertools.count()


class _FailedElsewhere(Exception):
    """Another rank has failed, and tells of it."""


def do_apart(ranks: Ranks, work: Callable[[Advance], T], watch: Callable[[int], None] = lambda done: None) -> list[T]:
    """What ``work`` returned on each rank, in the order of the ranks.

    ``work`` calls what it is given after each piece; ``watch`` hears how many all have done. UserError, RunError: of the first
    rank whose ``work`` raised one; the others stop at their next piece. DistStoreError, as where any joint work's time is over:
    for ``distributed.timeout`` no rank has done a piece or come to an end. A joint work of the ranks.
    """
    if ranks.count == 1:
        done = itertools.count(1)
        return [work(lambda: watch(next(done)))]
    # the number is the same on all ranks, which do such work in one order
    store = PrefixStore(f"flowfactory/apart/{next(_numbers)}", distributed_c10d._get_default_store())

    def advance() -> None:
        watch(store.add("done", 1))
        if store.check(["failed"]):
            raise _FailedElsewhere

    ended: tuple[Any, Exception | None] = (None, None)
    try:
        ended = (work(advance), None)
    except (UserError, RunError) as error:
        store.set("failed", "")
        ended = (None, to_plain(error))
    except _FailedElsewhere:
        pass
    store.set(str(ranks.rank), pickle.dumps(ended))  # type: ignore[arg-type]
    told = _wait(store, ranks.count, watch)
    for _, failure in told:
        if failure is not None:
            raise failure
    return [result for result, _ in told]


def _wait(store: PrefixStore, count: int, watch: Callable[[int], None]) -> list[tuple[Any, Exception | None]]:
    """How each rank ended. DistStoreError: for as long as the store waits, none has done anything."""
    patience = store.timeout.total_seconds()  # type: ignore[attr-defined]
    before, since = None, time.monotonic()
    while True:
        working = [rank for rank in range(count) if not store.check([str(rank)])]
        done = store.add("done", 0)
        if not working:
            watch(done)
            return [pickle.loads(store.get(str(rank))) for rank in range(count)]
        if (done, working) != before:
            before, since = (done, working), time.monotonic()
            watch(done)
        elif time.monotonic() - since > patience:
            told = f"rank {working[0]} has done nothing for {patience / 60:g} minutes while others waited for it"
            raise DistStoreError(f"{told}; look at what it wrote, or raise distributed.timeout")
        time.sleep(POLL_SECONDS)
