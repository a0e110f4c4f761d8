"""The components that come with core."""

from collections.abc import Callable
from typing import Any

from flowfactory.discovery.specs import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the dynamics and trackers of core."""
    register("dynamics", "ode", "flowfactory.flow.dynamics:ODEConfig")
    register("dynamics", "dpm-solver", "flowfactory.flow.dynamics:DPMSolverConfig")
    register("dynamics", "heun", "flowfactory.flow.dynamics:HeunConfig")
    register("dynamics", "flow-sde", "flowfactory.flow.dynamics:FlowSDEConfig")
    register("dynamics", "dance-sde", "flowfactory.flow.dynamics:DanceSDEConfig")
    register("dynamics", "cps", "flowfactory.flow.dynamics:CPSConfig")
    register("tracker", "tensorboard", "flowfactory.runs.trackers.tensorboard:TensorBoardConfig")
    register("tracker", "csv", "flowfactory.runs.trackers.csv_files:CsvConfig")
    register("tracker", "wandb", "flowfactory.runs.trackers.wandb:WandbConfig")
    register("tracker", "trackio", "flowfactory.runs.trackers.trackio:TrackioConfig")
    register("tracker", "swanlab", "flowfactory.runs.trackers.swanlab:SwanLabConfig")
    register("tracker", "mlflow", "flowfactory.runs.trackers.mlflow:MLflowConfig")
