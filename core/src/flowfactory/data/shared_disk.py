"""Which ranks see the cache of encoded prompts on one disk."""

from __future__ import annotations

from flowfactory.data.cache_folder import CacheFolder
from flowfactory.distributed.ranks import Ranks


def find_mates(folder: CacheFolder, ranks: Ranks) -> list[int]:
    """The ranks, in order, that see what each of them writes to ``folder``; this one alone where it cannot write there.

    A joint work of the ranks.
    """
    if ranks.count == 1:
        return [ranks.rank]
    mark = folder.leave_mark()
    names = ranks.gather(None if mark is None else mark.name)
    seen = {rank for rank, name in enumerate(names) if name is not None and folder.has_mark(name)}
    sights = ranks.gather(seen)
    if mark is not None:
        mark.unlink(missing_ok=True)
    return [rank for rank, other in enumerate(sights) if other == seen] if ranks.rank in seen else [ranks.rank]


def deal(places: list[int], place: int, count: int, size: int) -> list[int]:
    """The part of ``places`` of one of ``count`` ranks: every so manieth ``size`` of them, as they would be encoded by one.

    So what is encoded in one batch does not depend on the number of ranks, and none reads encoders for a few prompts.
    """
    return [one for start in range(place * size, len(places), count * size) for one in places[start : start + size]]
