"""Weights that stay in their files until they are placed: what a machine's ranks have in common is in memory once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from flowfactory.errors import RunError

STORED = "_stored_weight"


@dataclass(frozen=True)
class WeightFile:
    """A file of safetensors, as it was when its weights were looked at."""

    path: Path
    size: int
    changed: int

    @classmethod
    def find(cls, path: Path) -> WeightFile:
        """The file at ``path``. OSError: there is none."""
        found = path.stat()
        return cls(path, found.st_size, found.st_mtime_ns)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Its tensors by name, mapped: memory is taken by what is read of them, once for all processes of the machine.

        RunError: it is another file now.
        """
        try:
            same = WeightFile.find(self.path) == self
        except OSError:
            same = False
        if not same:
            raise RunError(f"{self.path} was changed or taken away after the run had looked at it; start the run again")
        with safe_open(self.path, framework="pt") as tensors:
            yield tensors


@dataclass(frozen=True)
class StoredWeight:
    """The weight called ``name`` in ``file``."""

    file: WeightFile
    name: str


def stand_in(stored: StoredWeight, like: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A parameter of the shape of ``like`` that takes no memory, until :func:`place` fills it with ``stored`` as ``dtype``."""
    # of the dtype and device to come, which adapters go by; and no numbers, so that one that was never placed is found out
    parameter = nn.Parameter(torch.full((), torch.nan, dtype=dtype).expand(like.shape), like.requires_grad)
    setattr(parameter, STORED, stored)
    return parameter


def read_stored(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """The parameters of ``module`` that are still in files, by name, and their numbers as they are there, mapped.

    RunError: a file is another one now.
    """
    opened: dict[WeightFile, Any] = {}
    with ExitStack() as stack:
        for name, parameter in module.named_parameters():
            stored: StoredWeight | None = getattr(parameter, STORED, None)
            if stored is None:
                continue
            if stored.file not in opened:
                opened[stored.file] = stack.enter_context(stored.file.opened())
            yield name, parameter, opened[stored.file].get_tensor(stored.name)


def place(module: nn.Module) -> None:
    """Give the parameters of ``module`` that are still in files their numbers, in the dtypes they are to have.

    What has that dtype in its file stays mapped; other numbers are a copy of this process. RunError: a file is another one now.
    """
    for _, parameter, numbers in read_stored(module):
        parameter.data = numbers.to(parameter.dtype)
        delattr(parameter, STORED)
