"""What the tensors of a checkpoint are there for, by their names; each rank has a file for each role."""

from __future__ import annotations

import re
from urllib.parse import quote

PRESENT, FROZEN, KEPT = "present/", "frozen/", "kept/"
"""How the names of trained weights begin, of what the trained modules have beside them, and of weights kept under a name."""
WEIGHTS, TRAINING = "weights", "training"
"""The roles of the present weights, and of what only a resumed run goes on with: moments, random state."""
SHARD = re.compile(rf"checkpoint-(?P<role>{WEIGHTS}|{TRAINING}|kept-.+)-(?P<rank>0|[1-9][0-9]*)\.safetensors")


def role_of(tensor: str) -> str:
    """The role of the tensor of that name."""
    if tensor.startswith((PRESENT, FROZEN)):
        return WEIGHTS
    return kept_role(kept_name(tensor)) if tensor.startswith(KEPT) else TRAINING


def kept_role(name: str) -> str:
    """The role of weights kept as ``name``."""
    return f"kept-{quote(name, safe=' ')}"


def kept_name(tensor: str) -> str:
    """The name under which a tensor, whose own begins with KEPT, is kept."""
    return tensor.removeprefix(KEPT).rpartition("/")[0]


def shard_name(role: str, rank: int) -> str:
    """The file of what ``rank`` wrote for ``role``; diffusers passes over files called so when it looks for adapters."""
    return f"checkpoint-{role}-{rank}.safetensors"


def role_of_shard(file: str) -> str | None:
    """The role of the file of that name; None: it is no shard's."""
    found = SHARD.fullmatch(file)
    return found and found["role"]
