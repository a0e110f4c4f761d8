"""Weights on the disk: those of a checkpoint, and a policy's there and back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from flowfactory import Policy
from flowfactory.runs.checkpoints import load as checkpoint
from flowfactory.runs.checkpoints.save import save_weights
from flowfactory.runs.checkpoints.stored_modules import StoredModule, read_modules, write_adapters
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


@contextmanager
def stored(policy: Policy) -> Iterator[list[StoredModule]]:
    """The trained modules of ``policy`` as a checkpoint has them, which is there within the context."""
    with tempfile.TemporaryDirectory() as folder:
        save(policy, Path(folder))
        yield read_modules(Path(folder))


def save_trained(policy: Policy, folder: Path) -> None:
    """Write what ``policy`` trained as an export has it for diffusers, each module's config beside it."""
    from flowfactory.runs.export.weights import write_whole  # which wants huggingface_hub

    with stored(policy) as modules:
        if policy.lora:
            write_adapters(modules, folder)
            return
        for module in modules:
            write_whole(module, folder, torch.float32, (), "10GB")
            trained = policy.modules[module.name]
            trained.save_config(folder / module.name)  # type: ignore[operator]
