"""For authors of plugins: contract suites, the learning bench, and the two-parameter model."""

from flowfactory.testing.contracts import (
    ODE,
    Bench,
    Calls,
    Count,
    Learning,
    TwoParameter,
    TwoParameterConfig,
    bench,
    check_algorithm,
    check_model,
    check_reward,
    learning,
)

__all__ = [
    "ODE",
    "Bench",
    "Calls",
    "Count",
    "Learning",
    "TwoParameter",
    "TwoParameterConfig",
    "bench",
    "check_algorithm",
    "check_model",
    "check_reward",
    "learning",
]
