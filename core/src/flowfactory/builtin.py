"""The components that come with core."""

from collections.abc import Callable
from typing import Any

from flowfactory.hookspecs import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the dynamics and trackers of core."""
    register("dynamics", "ode", "flowfactory.dynamics:ODEConfig")
    register("dynamics", "flow-sde", "flowfactory.dynamics:FlowSDEConfig")
    register("dynamics", "dance-sde", "flowfactory.dynamics:DanceSDEConfig")
    register("dynamics", "cps", "flowfactory.dynamics:CPSConfig")
    register("tracker", "tensorboard", "flowfactory.trackers:TensorBoardConfig")
