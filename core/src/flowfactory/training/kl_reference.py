"""When a KL's reference is taken anew."""

from __future__ import annotations

from flowfactory.config.kl import KLRefresh
from flowfactory.errors import RunError
from flowfactory.policy.kl_reference import KL_REFERENCE
from flowfactory.policy.policy import Policy


class KLReference:
    """Owner of when the reference became the present weights, which it does as ``refresh`` says; the policy owns the weights.

    ``steps`` are the optimizer steps since then. GARDO, arXiv:2512.24138, section 4.2. RunError: the algorithm keeps none.
    """

    def __init__(self, policy: Policy, refresh: KLRefresh) -> None:
        if KL_REFERENCE not in policy.kept:
            raise RunError(
                f"algorithm.kl.refresh: the algorithm keeps no weights called {KL_REFERENCE!r}; keep them by "
                "flowfactory.policy.keep_kl_reference, and compare with kl_reference(config.kl)"
            )
        self._policy, self._refresh_when = policy, refresh
        self.steps, self._refreshed = 0, 0

    @property
    def measured(self) -> bool:
        """Whether it depends on the divergence."""
        return self._refresh_when.above is not None

    def step_finished(self) -> None:
        """After an optimizer step."""
        self.steps += 1
        if self._refresh_when.every is not None and self.steps >= self._refresh_when.every:
            self._refresh()

    def iteration_finished(self, divergence: float) -> None:
        """After an iteration, of that mean ``divergence``."""
        # of an iteration within which it was taken anew that is a mean from two references, and says nothing of the later one
        if self._refresh_when.above is not None and not self._refreshed and divergence > self._refresh_when.above:
            self._refresh()

    def _refresh(self) -> None:
        self._policy.update_ema(KL_REFERENCE, 0.0)
        self.steps, self._refreshed = 0, self._refreshed + 1

    def take_metrics(self) -> dict[str, float]:
        """How often it was taken anew since this was last asked, and the steps since it was."""
        refreshed, self._refreshed = self._refreshed, 0
        return {"kl_reference/refreshed": float(refreshed), "kl_reference/steps": float(self.steps)}
