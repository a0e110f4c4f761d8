"""What a loss wants to know of several forwards before the first of them is back-propagated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from flowfactory.policy.comparing import At
from flowfactory.types import Evaluation, Step

if TYPE_CHECKING:
    from flowfactory.policy.policy import Policy


class Placed(Protocol):
    """What is evaluated at its ``step``."""

    @property
    def step(self) -> Step:
        """Where."""


Piece = TypeVar("Piece", bound=Placed)


def look_ahead(
    policy: Policy,
    pieces: Sequence[Piece],
    wanted: Mapping[str, At],
    since: At,
    measure: Callable[[Piece, Evaluation, Mapping[str, Evaluation]], Tensor],
) -> list[tuple[Tensor, dict[str, Evaluation]]]:
    """What ``measure`` finds of each piece, without a gradient, and what was compared there, for it to be used again.

    Empty where the weights ``since`` which something is measured are the present ones, so that it is zero everywhere.
    """
    if policy.is_present(since, pieces[0].step):
        return []
    found = ((piece, *policy.compare(piece.step, wanted)) for piece in pieces)
    with torch.no_grad():  # one after the other, since a velocity is as large as the latents
        return [(measure(piece, new, kept), kept) for piece, new, kept in found]
