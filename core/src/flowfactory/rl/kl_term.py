"""The term ``kl`` of a loss, as an algorithm's option ``kl`` has it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from flowfactory.config.kl import AdaptiveKL, KLTerm, kl_term
from flowfactory.experience import Experience, Loss


def add_kl(
    loss: Loss,
    kl: float | AdaptiveKL | KLTerm,
    samples: Experience,
    divergence: Tensor,
    weigh: Callable[[float], float | Tensor] = lambda coefficient: coefficient,
) -> Loss:
    """The loss with the term ``kl``, which is ``divergence`` [b] of ``samples``; as it is where the option ``kl`` is 0.

    Its weight is the coefficient of the option, or what ``weigh`` makes of that, for each sample where it is [b]. A sample that
    is not ``samples.kl_gate``'s is not penalised, and the term is the mean over all of them all the same.
    """
    chosen = kl_term(kl)
    if chosen is None:
        return loss
    weight, gate = chosen.coefficient, samples.kl_gate if chosen.gate else None
    if isinstance(weight, AdaptiveKL):
        weight = weight.start if samples.kl_coefficient is None else samples.kl_coefficient
    return loss.add_term("kl", weigh(weight), divergence, gate)
