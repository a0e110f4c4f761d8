"""Rewards for flowfactory, one a file."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the reward ``jpeg-size``."""
    register("reward", "jpeg-size", "flowfactory_rewards.jpeg_size:JpegSizeConfig")
