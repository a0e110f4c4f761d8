"""A one-file plugin for the runs of these tests: the plainest policy gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowfactory import hookimpl
from flowfactory.testing.policy_gradient import PolicyGradientConfig


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    register("algorithm", "reinforce", PolicyGradientConfig)
