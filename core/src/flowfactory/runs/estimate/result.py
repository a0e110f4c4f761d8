"""What an estimate says: bytes of one rank by what holds them, and by phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GIB = 2**30
RESERVE = GIB
"""Bytes of a CUDA card that no tensor gets: its context, the workspaces of libraries, gaps. Reckoned, not measured."""


@dataclass(frozen=True)
class Part:
    """Bytes on the device, and in host memory where that is another."""

    device: int = 0
    host: int = 0


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank, that with the most.

    parts: what holds them, by name. phases: the most that the device holds at once while a run reads weights, encodes prompts,
    samples, decodes, evaluates, learns and saves. host: the most of its own in host memory. machine: the most that a machine
    with all ranks has there, files that they share included. Without ``cuda`` everything is the device's, and both are 0.
    unknown: the labels of rewards that do not tell what they weigh. encodes_again: whether prompts are encoded in training,
    too, beside the weights.
    """

    parts: Mapping[str, Part]
    phases: Mapping[str, int]
    host: int
    cuda: bool
    ranks: int
    unknown: tuple[str, ...] = ()
    machine: int = 0
    encodes_again: bool = False

    @property
    def peak(self) -> int:
        """The most bytes of tensors that the device ever holds."""
        return max(self.phases.values())

    @property
    def needed(self) -> int:
        """Bytes that a card must have."""
        return self.peak + (RESERVE if self.cuda else 0)
