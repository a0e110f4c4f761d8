"""The weights that a KL is from: those that training started from, or a copy that the run takes anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfactory.config.kl import kl_term
from flowfactory.policy.policy import REFERENCE, Policy

if TYPE_CHECKING:
    from flowfactory.config.kl import AdaptiveKL, KLTerm

KL_REFERENCE = "kl reference"
"""The name under which the weights of a KL whose reference is taken anew are kept."""


def kl_reference(kl: float | AdaptiveKL | KLTerm) -> str:
    """The name under which the weights are kept that the option ``kl`` asks for the divergence from."""
    chosen = kl_term(kl)
    return KL_REFERENCE if chosen and chosen.refresh else REFERENCE


def keep_kl_reference(policy: Policy, kl: float | AdaptiveKL | KLTerm) -> None:
    """Keep those weights, where the option ``kl`` is not 0: with LoRA a copy of the adapters, where they are taken anew."""
    if kl_term(kl) is None:
        return
    if kl_reference(kl) == REFERENCE:
        policy.keep_reference()
    else:
        policy.keep(KL_REFERENCE)
