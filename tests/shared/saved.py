"""Weights on the disk: those of a checkpoint, and a policy's there and back."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from flowfactory import Policy
from flowfactory.runs.checkpoints import load as checkpoint


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by name."""
    return _read(folder, "")


def weights(folder: Path) -> dict[str, Tensor]:
    """The trained weights of a checkpoint, by the transformer's name and the parameter's."""
    return _read(folder, "present/")


def kept(folder: Path) -> dict[str, Tensor]:
    """The kept weights of a checkpoint, ``<name>/<parameter>``."""
    return _read(folder, "kept/")


def _read(folder: Path, prefix: str) -> dict[str, Tensor]:
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no process group
        state_dict_loader.load(state, checkpoint_id=folder, no_dist=True)
    return {name.removeprefix(prefix): value for name, value in state.items()}


def save(policy: Policy, folder: Path) -> None:
    """Write all weights of ``policy`` and those that it trains, as a checkpoint has them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state_dict_saver.save(policy.state(), checkpoint_id=folder, no_dist=True)
    policy.save_trained(folder)


def load(policy: Policy, folder: Path) -> None:
    """Take up what :func:`save` wrote."""
    checkpoint.load(folder, policy)
