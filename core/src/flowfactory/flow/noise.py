"""Noise that depends on seed, iteration, prompt, member and step alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from flowfactory.device_copies import send
from flowfactory.types import NoiseKey, SamplingPlan

INITIAL = -1
"""The ``step`` of the noise that a trajectory starts from."""


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by the whole key, the same in every process and on every machine."""
    # not hash(): it differs from process to process
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def noise(plan: SamplingPlan, shape: Sequence[int], step: int = INITIAL, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal [B, *shape], float32: a function of (seed, iteration, prompt, member, step) alone.

    ``step`` is INITIAL for the start of the trajectory, else the step whose noise it is. Samples that share a start have the
    same one there.
    """
    keys = plan.starts if plan.starts and step == INITIAL else plan.keys

    def draw(key: NoiseKey) -> Tensor:
        source = generator("noise", plan.seed, plan.iteration, key.prompt, key.member, step)
        return torch.randn(tuple(shape), generator=source)

    drawn = {key: draw(key) for key in dict.fromkeys(keys)}
    return send(torch.stack([drawn[key] for key in keys]), device)
