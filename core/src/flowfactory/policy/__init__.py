"""The weights of a run: trained, kept and averaged; adapters, and what is done to a transformer's blocks."""

from flowfactory.config.ema import Constant, Cosine, Decay, Linear, PiecewiseLinear, Power, WarmupCosine
from flowfactory.policy.policy import REFERENCE, At, Policy

__all__ = ["REFERENCE", "At", "Constant", "Cosine", "Decay", "Linear", "PiecewiseLinear", "Policy", "Power", "WarmupCosine"]
