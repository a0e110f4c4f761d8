"""Roles: what an algorithm trains beside the policy, in weights of its own over the same base."""

from __future__ import annotations

from pydantic import Field

from flowfactory.config.strict import Strict


class RoleConfig(Strict):
    """How a role is trained: as the policy is, by an optimizer of the same kind, but for what is said here."""

    steps: int = Field(1, ge=1, le=1000, description="optimizer steps before each of the policy's, on the same samples")
    lr: float | None = Field(None, gt=0, le=1, description="learning rate; that of training.optimizer when left out")
