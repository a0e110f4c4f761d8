"""For authors of plugins: contracts, suites of an algorithm's properties, and the two-parameter flow to work them out on.

``check_…`` raise AssertionError with a sentence that names what is off. They need no pytest, and run on the CPU in seconds.
"""

from flowfactory.flow.dynamics import ODE
from flowfactory.testing.algorithm_contract import check_algorithm
from flowfactory.testing.by_hand import (
    ClippedByHand,
    FlowByHand,
    NoisedByHand,
    StepByHand,
    autograd_by_hand,
    clip_by_hand,
    step_by_hand,
)
from flowfactory.testing.counters import ForwardCalls, ForwardCount
from flowfactory.testing.dynamics_contract import check_dynamics
from flowfactory.testing.learning_bench import Learning, Update, Weights, learning, make_plan
from flowfactory.testing.loss_suite import (
    BEYOND_THE_CLIP,
    blend,
    check_average,
    check_clip,
    check_descent_follows_advantages,
    check_forwards,
    check_forwards_fit,
    check_losses,
    check_losses_in_any_order,
    check_no_advantage_no_gradient,
    check_penalty,
    check_ratios_are_one,
    check_reference_stays,
    check_same_updates_whatever_fits_a_forward,
)
from flowfactory.testing.model_bench import Bench, bench
from flowfactory.testing.model_contract import check_model
from flowfactory.testing.pipeline_parity import (
    Drawn,
    check_against_pipeline,
    check_encode_media,
    draw_with_pipeline,
)
from flowfactory.testing.reward_contract import check_reward
from flowfactory.testing.run_suite import (
    Started,
    Trained,
    begin,
    check_first_update,
    check_records_no_step,
    check_refused,
    check_refuses_another_sampler,
    check_refuses_more_updates_than_groups,
    check_resumes_bit_for_bit,
    check_runs,
    check_timesteps_options,
    guided_learning,
    train,
)
from flowfactory.testing.tracker_contract import check_tracker
from flowfactory.testing.two_parameter import TwoParameter, TwoParameterConfig, settings

__all__ = [
    "BEYOND_THE_CLIP",
    "ODE",
    "Bench",
    "ClippedByHand",
    "Drawn",
    "FlowByHand",
    "ForwardCalls",
    "ForwardCount",
    "Learning",
    "NoisedByHand",
    "Started",
    "StepByHand",
    "Trained",
    "TwoParameter",
    "TwoParameterConfig",
    "Update",
    "Weights",
    "autograd_by_hand",
    "begin",
    "bench",
    "blend",
    "check_against_pipeline",
    "check_algorithm",
    "check_average",
    "check_clip",
    "check_descent_follows_advantages",
    "check_dynamics",
    "check_encode_media",
    "check_first_update",
    "check_forwards",
    "check_forwards_fit",
    "check_losses",
    "check_losses_in_any_order",
    "check_model",
    "check_no_advantage_no_gradient",
    "check_penalty",
    "check_ratios_are_one",
    "check_records_no_step",
    "check_reference_stays",
    "check_refused",
    "check_refuses_another_sampler",
    "check_refuses_more_updates_than_groups",
    "check_resumes_bit_for_bit",
    "check_reward",
    "check_runs",
    "check_same_updates_whatever_fits_a_forward",
    "check_timesteps_options",
    "check_tracker",
    "clip_by_hand",
    "draw_with_pipeline",
    "guided_learning",
    "learning",
    "make_plan",
    "settings",
    "step_by_hand",
    "train",
]
