"""For authors of plugins: contract suites, the learning bench, and the two-parameter model.

``check_reward``, ``check_model`` and ``check_algorithm`` raise AssertionError with a sentence that names what is off. They run
on the CPU in seconds.
"""

from flowfactory.flow.dynamics import ODE
from flowfactory.testing.algorithm_contract import check_algorithm
from flowfactory.testing.counters import ForwardCalls, ForwardCount
from flowfactory.testing.learning_bench import Learning, learning
from flowfactory.testing.model_bench import Bench, bench
from flowfactory.testing.model_contract import check_model
from flowfactory.testing.reward_contract import check_reward
from flowfactory.testing.two_parameter import TwoParameter, TwoParameterConfig

__all__ = [
    "ODE",
    "Bench",
    "ForwardCalls",
    "ForwardCount",
    "Learning",
    "TwoParameter",
    "TwoParameterConfig",
    "bench",
    "check_algorithm",
    "check_model",
    "check_reward",
    "learning",
]
