"""``torch.no_grad`` as a decorator that looks at PyTorch when the function is called, not where it is written."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def without_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` run under ``torch.no_grad``: a config is checked without PyTorch, by classes that are written with it."""

    @wraps(function)
    def run(*given: P.args, **options: P.kwargs) -> R:
        with torch.no_grad():
            return function(*given, **options)

    return run
