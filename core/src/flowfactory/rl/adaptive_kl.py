"""What a KL weighs, whether the config gives its weight or has it adapt."""

from __future__ import annotations

from flowfactory.config.kl import AdaptiveKL
from flowfactory.experience import Experience


def kl_weight(kl: float | AdaptiveKL, samples: Experience) -> float:
    """The weight of the term ``kl`` in the iteration of ``samples``, where the algorithm's option is ``kl``."""
    if not isinstance(kl, AdaptiveKL):
        return kl
    return kl.start if samples.kl_coefficient is None else samples.kl_coefficient
