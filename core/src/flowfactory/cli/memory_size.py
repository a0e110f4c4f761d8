"""``--memory 24GB``."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from flowfactory.errors import UserError

GIB = 2**30
UNITS = {"": GIB, "g": GIB, "gb": GIB, "gib": GIB, "m": 2**20, "mb": 2**20, "mib": 2**20}
"""As cards are called: one of 24 GB has 24 GiB."""


def parse_memory(text: str | int) -> int:
    """Bytes. UserError: it is no size."""
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*([a-z]{0,3})", str(text).strip().lower())
    if found is None or found[2] not in UNITS or not float(found[1]):
        raise UserError(f"--memory {text}: give the memory of a GPU, such as 24GB")
    return round(float(found[1]) * UNITS[found[2]])


Memory = Annotated[
    int | None,
    typer.Option(metavar="SIZE", parser=parse_memory, help="Of a GPU, such as 24GB; of the one here when left out."),
]
