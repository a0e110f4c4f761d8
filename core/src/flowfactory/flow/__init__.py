"""Flow matching in pure functions: noise, one step, the rollout, dynamics, and training timesteps."""

from flowfactory.flow.dynamics import CPSConfig, DanceSDEConfig, DPMSolverConfig, FlowSDEConfig, HeunConfig, ODEConfig
from flowfactory.flow.guidance import negative_branch
from flowfactory.flow.noise import INITIAL, generator, noise
from flowfactory.flow.rollout import check_sigmas, evaluate, expand_sigma, forward_by_kind, log_normal, rollout
from flowfactory.flow.solvers import Solver, euler
from flowfactory.flow.timesteps import (
    Discrete,
    LogitNormal,
    NoisedBatch,
    Timesteps,
    TimestepsConfig,
    Uniform,
    noised_batches,
    noised_micro_batches,
    schedule_shift,
    shift_sigma,
    training_generators,
)

__all__ = [
    "INITIAL",
    "CPSConfig",
    "DPMSolverConfig",
    "DanceSDEConfig",
    "Discrete",
    "FlowSDEConfig",
    "HeunConfig",
    "LogitNormal",
    "NoisedBatch",
    "ODEConfig",
    "Solver",
    "Timesteps",
    "TimestepsConfig",
    "Uniform",
    "check_sigmas",
    "euler",
    "evaluate",
    "expand_sigma",
    "forward_by_kind",
    "generator",
    "log_normal",
    "negative_branch",
    "noise",
    "noised_batches",
    "noised_micro_batches",
    "rollout",
    "schedule_shift",
    "shift_sigma",
    "training_generators",
]
