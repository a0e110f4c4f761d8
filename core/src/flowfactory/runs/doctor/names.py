"""The names of the metrics that rules read, in one place. What not every run has is read where it is there."""

from __future__ import annotations

REWARD, ADVANTAGE, HELD_OUT, SECONDS = "reward/", "advantage/", "eval/", "seconds/"
"""What names begin with."""

CLIPPED = ("clip_fraction", "masked_fraction")
"""The share of losses that the trust region left without a gradient; each also ``/first_update``."""
FIRST_UPDATE = "/first_update"
RATIO_DEVIATION = "ratio/max_deviation"
RATE = "lr"
FLAT_GROUPS = ("groups/equal",)
"""The share of groups that no reward told apart."""
UPDATE_SIZE = ("weights/update",)
"""The norm of what an iteration added to the weights, by the norm of the weights."""
EFFECTIVE_SAMPLES = ("effective_sample_size",)
"""The share of the samples that as many of equal ratios would be."""
VELOCITY_SIZE = "velocity_norm"
"""The size of velocities by that of the model that training started from."""
KL_REFRESHED = "kl_reference/refreshed"
COEFFICIENTS = ("kl_coefficient",)
"""What a controller sets."""
DRIFT_ALARM, DRIFT_DISTANCE = "drift/alarm", "drift/z"
"""How many statistics of the pictures are far from where they began, and by how many standard deviations the farthest is."""

READ = (
    *(REWARD, ADVANTAGE, HELD_OUT, SECONDS, DRIFT_ALARM, DRIFT_DISTANCE, *CLIPPED, RATIO_DEVIATION, RATE),
    *(*FLAT_GROUPS, *UPDATE_SIZE, VELOCITY_SIZE, *EFFECTIVE_SAMPLES, *COEFFICIENTS, KL_REFRESHED),
)
"""What the name of everything that is read begins with."""
