"""NormGuard, arXiv:2606.27771: a velocity that grows beyond the reference's is pulled back to its size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from flowfactory.config.component import AlgorithmConfig
from flowfactory.experience import Loss

NORM_GUARD = "norm_guard"
"""The name of the term, of its option, and of what is compared for it."""


class NormGuardConfig(AlgorithmConfig):
    """The option of algorithms that regress a velocity."""

    norm_guard: float = Field(
        0.0, ge=0, description="weight of the squared excess of the velocity's norm over that of where training started"
    )


def root_mean_square(velocity: Tensor) -> Tensor:
    """[B]: norm of each sample's velocity over the square root of its number of elements; a velocity of zero has gradient 0."""
    flat = velocity.flatten(1)
    # not a root of a mean of squares, whose gradient at zero is not a number
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.promote_types(flat.dtype, torch.float32))
    return norm / math.sqrt(flat.shape[1])


def norm_excess(velocity: Tensor, reference: Tensor) -> Tensor:
    """[B]: relu(rho - rho_ref)² of the two velocities' root mean squares; a velocity that shrinks costs nothing."""
    return torch.relu(root_mean_square(velocity) - root_mean_square(reference)).square()


def guard_norm(
    loss: Loss, weight: float, velocity: Tensor, reference: Tensor, rows: Callable[[Tensor], Tensor] | None = None
) -> Loss:
    """The loss with ``weight`` times :func:`norm_excess` as its term ``norm_guard``, and the metric ``velocity_norm``.

    That is rho / rho_ref, [b]. Both velocities are at the same latents, sigma, conditions and guidance. ``rows`` makes what is
    found of each velocity one value for each of the loss, where a loss is of several, such as a pair.
    """
    with torch.no_grad():
        own, start = root_mean_square(velocity), root_mean_square(reference)
        ratio = own / start.clamp_min(torch.finfo(start.dtype).tiny)
    excess = norm_excess(velocity, reference)
    if rows is not None:
        excess, ratio = rows(excess), rows(ratio)
    return replace(loss.add_term(NORM_GUARD, weight, excess), metrics={**loss.metrics, "velocity_norm": ratio})
