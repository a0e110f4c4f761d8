"""Save, find and resume: a checkpoint is whole under its name or not there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from flowfactory.errors import UserError
from flowfactory.learner import Learner
from flowfactory.policy import Policy

MANIFEST = "checkpoint.json"


def save(folder: Path, iteration: int, policy: Policy, learner: Learner) -> Path:
    """Write ``folder/<iteration>`` by way of a temporary name; returns its path.

    A kill at any instant leaves the previous checkpoint whole, since the rename comes after everything is on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".writing-*"):
        shutil.rmtree(left)
    temporary, final = folder / f".writing-{iteration:06d}", folder / f"{iteration:06d}"
    temporary.mkdir()
    policy.save(temporary)
    torch.save({"learner": learner.state_dict(), "random": torch.get_rng_state()}, temporary / "training.pt")
    (temporary / MANIFEST).write_text(json.dumps({"iteration": iteration}))
    for path in sorted(temporary.rglob("*"), reverse=True):
        _flush(path)
    _flush(temporary)
    if final.exists():  # the same iteration again, after a resume with --set
        shutil.rmtree(final)
    os.rename(temporary, final)
    _flush(folder)
    return final


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    whole = sorted(path.parent for path in folder.glob(f"[0-9]*/{MANIFEST}"))
    return whole[-1] if whole else None


def find(folder: Path, iteration: int | None = None) -> Path:
    """The checkpoint of ``iteration``, or the newest. UserError: there is none."""
    path = latest(folder) if iteration is None else folder / f"{iteration:06d}"
    if path is None or not (path / MANIFEST).is_file():
        there = ", ".join(str(int(p.parent.name)) for p in sorted(folder.glob(f"[0-9]*/{MANIFEST}")))
        wanted = "" if iteration is None else f" of iteration {iteration}"
        raise UserError(f"{folder} holds no checkpoint{wanted}" + (f"; there is {there}" if there else ""))
    return path


def restore(path: Path, policy: Policy, learner: Learner) -> int:
    """The iteration that ``path`` was saved after; weights, optimizer and random state are as they were then."""
    state: dict[str, Any] = torch.load(path / "training.pt", weights_only=True, map_location="cpu")
    policy.load(path)
    learner.load_state_dict(state["learner"])
    torch.set_rng_state(state["random"])
    return int(json.loads((path / MANIFEST).read_text())["iteration"])
