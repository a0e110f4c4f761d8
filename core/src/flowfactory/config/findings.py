"""What is wrong with a config: one finding a mistake, and all of them together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig

SHOWN, MOST = 20, 100
"""How many mistakes are told, and looked for."""


class Finding(NamedTuple):
    """What is wrong at ``place``, keys joined by dots as in YAML; "" where the message is a sentence of its own."""

    place: str
    message: str

    @property
    def section(self) -> str:
        """The first of the keys that it is about."""
        return re.split(r"\W", self.place or self.message, maxsplit=1)[0]


class WrongConfig(ValueError):
    """Everything that is wrong with a config.

    ``rest`` is the config without what is wrong, whose keys it lacks; None where too little is left.
    """

    def __init__(self, findings: Iterable[Finding], rest: RunConfig | None = None) -> None:
        self.findings, self.rest = tuple(dict.fromkeys(findings)), rest
        super().__init__("\n".join(self.describe("config")))

    def describe(self, source: str, overrides: Sequence[str] = (), shown: int = SHOWN) -> list[str]:
        """A sentence each: the file, or ``--set``, and the key, and what to do; of more than ``shown`` the first."""
        told = [_line(finding, source, overrides) for finding in self.findings[:shown]]
        more = len(self.findings) - len(told)
        at_least = "at least " if len(self.findings) >= MOST else ""
        return [*told, f"{source}: and {at_least}{more} more; mend these first"] if more else told


def _line(finding: Finding, source: str, overrides: Sequence[str]) -> str:
    if finding.place:
        return f"{locate(finding.place, source, overrides)}: {finding.message}"
    named = re.match(r"[a-z_]+(\.[\w-]+)+", finding.message)  # what a check says begins with its key
    typed = named is not None and locate(named[0], source, overrides).startswith("--set")
    return f"--set {finding.message}" if typed else f"{source}: {finding.message}"


def locate(place: str, source: str, overrides: Sequence[str]) -> str:
    """``file: key``, or ``--set key`` where the key came from the command line."""
    for assignment in overrides:
        path = assignment.partition("=")[0].strip()
        if place == path or place.startswith(path + ".") or path.startswith(place + "."):
            return f"--set {place}"
    return f"{source}: {place}" if place else source
