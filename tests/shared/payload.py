"""Files that do something when they are unpickled: they make a file, which a test then looks for."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch


class Payload:
    """A pickle of it touches ``mark`` when it is opened."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


class Program(torch.nn.Module):
    """What TorchScript keeps with its code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def pickled(mark: Path) -> bytes:
    """A bare pickle."""
    return pickle.dumps(Payload(mark))


def saved_by_torch(mark: Path) -> bytes:
    """An archive of torch.save, with a tensor and the payload."""
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "state": Payload(mark)}, file)
    return file.getvalue()


def program() -> bytes:
    """An archive of TorchScript."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is going out of use
        torch.jit.save(torch.jit.script(Program()), file)
    return file.getvalue()
