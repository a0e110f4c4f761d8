"""Whether a card holds a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowfactory.config.paths import missing_checkpoints
from flowfactory.errors import UserError
from flowfactory.types import Say

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig


@dataclass(frozen=True)
class Verdict:
    """Whether it fits, None where that is not known; the bytes it needs and those of the card; and a sentence."""

    fits: bool | None
    sentence: str
    needed: int | None = None
    card: int | None = None


def judge_memory(config: RunConfig, ranks: int, card: int | None, here: int | None, say: Say) -> Verdict:
    """Of a run on ``ranks`` ranks, each with a card of ``card`` bytes; ``here`` are those of the card of this machine."""
    if card is None:
        return Verdict(None, "no GPU is here; --memory 24GB says whether one of 24 GB holds it")
    if config.device == "cpu":
        return Verdict(None, "the config says device: cpu; flowfactory estimate says what it takes of host memory")
    if away := dict(missing_checkpoints(config.model)):
        return Verdict(None, f"it cannot be estimated before {', '.join(away.values())} is on this machine")
    say("estimating memory from configs alone, which takes a minute or two for a large model")
    from flowfactory.runs.estimate.estimate import estimate
    from flowfactory.runs.estimate.table import verdict

    try:
        found = estimate(config, ranks, cuda=True)
    except UserError as error:
        return Verdict(None, f"it cannot be estimated: {error}")
    except Exception as error:  # a plugin's model may do what fake tensors cannot
        return Verdict(None, f"it cannot be estimated ({type(error).__name__})")
    share = "this GPU: " if card == here else ""
    return Verdict(found.needed <= card, f"{share}{verdict(found, config, card)}", found.needed, card)
