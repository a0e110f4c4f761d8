"""Whether whole weights fit on a card: an estimate, made once for a config and kept beside the cache of encoded prompts."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flowfactory.atomic_files import write_json_atomically
from flowfactory.data.cache_folder import default_folder
from flowfactory.distributed.mesh import Room
from flowfactory.runs.estimate.table import format_bytes
from flowfactory.runs.versions import versions
from flowfactory.types import Say
from flowfactory.untrusted_files import Refused, read_json

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig

SHARE, SHARE_BESIDE_UNKNOWN = 0.9, 0.6
"""Of a card that an estimate may fill, of which nothing has been measured on one; and beside rewards of unknown size."""
LARGEST = 2**16


def find_room(config: RunConfig, say: Say, ranks: int, card: int) -> Room:
    """Whether a run of ``config`` on ``ranks`` ranks has room on a card of ``card`` bytes where each holds whole weights.

    An estimate of a large model takes a minute or two, and is read again at later starts.
    """
    file = default_folder() / "estimates" / f"{_digest(config, ranks)}.json"
    found = _read(file)
    if found is None:
        say("estimating whether whole weights fit on each rank, which takes a minute or two for a large model, once")
        try:
            found = _estimate(config, ranks)
        except Exception as error:  # a plugin's model may do what fake tensors cannot; dividing is right all the same
            return Room(False, f"what whole ones take cannot be estimated ({type(error).__name__})")
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomically(file, found._asdict())
    return judge(found, card)


class Whole(NamedTuple):
    """Bytes of each card where every rank holds whole weights, beside the rewards that do not tell what they weigh."""

    needed: int
    unknown: list[str]


def judge(found: Whole, card: int) -> Room:
    """Whether it fits on a card of ``card`` bytes with something to spare."""
    beside = f", beside what {', '.join(found.unknown)} takes" if found.unknown else ""
    told = f"{format_bytes(found.needed)} of a card's {format_bytes(card)} would be needed for whole ones{beside}"
    return Room(found.needed <= (SHARE_BESIDE_UNKNOWN if found.unknown else SHARE) * card, told)


def _estimate(config: RunConfig, ranks: int) -> Whole:
    from flowfactory.runs.estimate.estimate import estimate

    whole = config.distributed.model_copy(update={"shard": 1, "replicate": ranks})
    found = estimate(config.model_copy(update={"distributed": whole}), ranks, cuda=True)
    return Whole(found.needed, list(found.unknown))


def _digest(config: RunConfig, ranks: int) -> str:
    """Of all that an estimate may hang on."""
    told = config.model_dump(mode="json", exclude={"output", "seed"})
    text = json.dumps([told, ranks, versions()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(file: Path) -> Whole | None:
    try:
        found = read_json(file, LARGEST)
    except (OSError, Refused):
        return None
    match found:
        case {"needed": int(needed), "unknown": list(unknown)}:
            return Whole(needed, [str(label) for label in unknown])
    return None
