"""The branch of classifier-free guidance that is led away from: whether gradients go through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flowfactory.types import Conditions


@contextmanager
def negative_branch(negative: Conditions) -> Iterator[None]:
    """Within it a model runs the forward of ``negative``, the conditions of the negative prompts.

    It has no graph where these are detached, as by ``algorithm.guidance_gradient: conditional``; its numbers are the same.
    """
    if not (negative.detached and torch.is_grad_enabled()):
        yield
        return
    with torch.no_grad():
        yield
    torch.clear_autocast_cache()  # weights that were cast for it have no graph, and the other forward would take them
