"""The weights of a run: trained, kept and averaged; adapters, and what is done to a transformer's blocks."""

from flowfactory.config.ema import Constant, Cosine, Decay, Linear, PiecewiseLinear, Power, WarmUp, WarmupCosine
from flowfactory.config.teachers import TeachersConfig
from flowfactory.policy.comparing import At, Comparison
from flowfactory.policy.flow_matching import flow_matching
from flowfactory.policy.kept_weights import BASE, POLICY
from flowfactory.policy.kl_reference import KL_REFERENCE, keep_kl_reference, kl_reference
from flowfactory.policy.looking_ahead import look_ahead
from flowfactory.policy.policy import REFERENCE, Policy

__all__ = [
    "BASE",
    "KL_REFERENCE",
    "POLICY",
    "REFERENCE",
    "At",
    "Comparison",
    "Constant",
    "Cosine",
    "Decay",
    "Linear",
    "PiecewiseLinear",
    "Policy",
    "Power",
    "TeachersConfig",
    "WarmUp",
    "WarmupCosine",
    "flow_matching",
    "keep_kl_reference",
    "kl_reference",
    "look_ahead",
]
