"""What a rule finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flowfactory.docs_address import page

PAGE = page("when_it_does_not_learn")

Rule = Literal[
    "run-failed",
    "no-spread-in-groups",
    "reward-saturated",
    "updates-too-small",
    "nearly-all-clipped",
    "nothing-clipped",
    "few-groups",
    "small-groups",
    "few-effective-samples",
    "reward-flat",
    "guided-velocity",
    "steps-under-guidance",
    "rate-too-high",
    "no-kl",
    "velocities-grow",
    "reward-hacking",
    "blind-to-prompts",
    "one-judge",
    "drift",
    "first-ratio",
    "at-a-bound",
    "reference-that-follows",
    "one-reward-dominates",
    "prompts-used-up",
    "slow-judge",
]
"""Headings of the page, as links have them."""


@dataclass(frozen=True)
class Finding:
    """``what`` is wrong, with its evidence in words, and the ``change`` that helps.

    ``rule`` is the heading of the page that tells more; ``about`` what of several it is about, such as a
    label. ``weight`` ranks: from 0 to 100, how likely it is what keeps the run from learning. ``keys`` are the keys to change
    and their new values where those are known, ``evidence`` the figures. What is ``solid`` is said while the run goes on.
    """

    rule: Rule
    weight: float
    what: str
    change: str
    about: str = ""
    keys: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, float] = field(default_factory=dict)
    solid: bool = False

    @property
    def page(self) -> str:
        """Where more is told."""
        return f"{PAGE}#{self.rule}"

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        return f"{self.what}; {self.change} ({self.page})"

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        told = {"rule": self.rule, "about": self.about, "weight": self.weight, "what": self.what, "change": self.change}
        return {**told, "keys": dict(self.keys), "evidence": dict(self.evidence), "page": self.page}
