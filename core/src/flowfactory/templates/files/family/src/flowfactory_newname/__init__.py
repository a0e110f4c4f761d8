"""What this package brings to flowfactory."""

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    """Register the model ``newname``."""
    # by a string: whoever lists plugins imports neither torch nor the options
    register(
        "model",
        "newname",
        "flowfactory_newname.model:NewNameConfig",
    )
