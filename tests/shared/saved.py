"""Weights on the disk: those of a checkpoint, and a policy's there and back."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from flowfactory import Policy
from flowfactory.runs.checkpoints import load as checkpoint
from flowfactory.runs.checkpoints.save import save_weights
from flowfactory.testing.run_suite import read_checkpoint


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by name."""
    return read_checkpoint(folder)


def weights(folder: Path) -> dict[str, Tensor]:
    """The trained weights of a checkpoint, by the transformer's name and the parameter's."""
    return read_checkpoint(folder, "present/")


def kept(folder: Path) -> dict[str, Tensor]:
    """The kept weights of a checkpoint, ``<name>/<parameter>``."""
    return read_checkpoint(folder, "kept/")


def save(policy: Policy, folder: Path) -> None:
    """Write all weights of ``policy`` and those that it trains, as a checkpoint has them."""
    save_weights(policy, folder)


def load(policy: Policy, folder: Path) -> None:
    """Take up what :func:`save` wrote."""
    checkpoint.load(folder, policy)
