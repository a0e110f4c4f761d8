"""Losses to optimizer steps: backward, accumulate, clip, step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from flowfactory.config.kl import KLTerm
from flowfactory.config.roles import RoleConfig
from flowfactory.config.schema import TrainingConfig
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.distributed.sharding import local_shard
from flowfactory.errors import RunError
from flowfactory.experience import Loss
from flowfactory.policy.parts import PARTS
from flowfactory.policy.policy import Policy
from flowfactory.rl import AdaptiveKL
from flowfactory.training import optimizers
from flowfactory.training.kl_reference import KLReference
from flowfactory.training.metrics import UpdateMetrics
from flowfactory.training.movement import Movement


class Learner:
    """Owner of the optimizer, and of what changes of a ``kl``: what a resumed run goes on with beside its weights.

    ``roles`` have each a learner of their own, which is told its ``role``: it works on the policy's weights while they are that
    role's.
    """

    def __init__(
        self,
        policy: Policy,
        config: TrainingConfig,
        ranks: Ranks = ALONE,
        kl: KLTerm | None = None,
        roles: Mapping[str, RoleConfig] = MappingProxyType({}),
        role: str = "",
    ) -> None:
        self._policy, self._role = policy, role
        self.roles = {name: Learner(policy, _of_role(config, own), ranks, role=name) for name, own in roles.items()}
        self._parameters = policy.parameters
        self._optimizer = optimizers.build(config.optimizer, self._parameters)
        self._config, self._ranks = config, ranks
        self._parts = policy.parts()
        self._named_parts = [part for part in PARTS if part in self._parts.values()]
        self.movement = Movement(self._parameters, ranks)
        self._steps = 0
        self.rate = config.optimizer.lr
        self._kl = kl.coefficient if kl and isinstance(kl.coefficient, AdaptiveKL) else None
        self.kl_coefficient = self._kl.start if self._kl else None
        self.kl_reference = KLReference(policy, kl.refresh) if kl and kl.refresh else None

    @property
    def steps(self) -> int:
        """How many optimizer steps have been made since training began."""
        return self._steps

    def step(
        self, losses: Iterable[Loss], metrics: UpdateMetrics, share: float = 1.0, beside: Iterable[Loss] | None = None
    ) -> float:
        """The gradient's norm, after one optimizer step along the mean of all ``losses``; their metrics go to ``metrics``.

        As :meth:`backward` and :meth:`apply`. No step is skipped in silence.
        """
        with self._policy.playing(self._role):
            norm = self.backward(losses, metrics, share, beside)
            self.apply()
        return norm

    def backward(
        self, losses: Iterable[Loss], metrics: UpdateMetrics, share: float = 1.0, beside: Iterable[Loss] | None = None
    ) -> float:
        """The gradient's norm before it is clipped; the gradient of the mean of all ``losses`` is left in the parameters.

        The losses are those of all ranks, each of which yields its own, and ``share`` of all that the mean is of: the others
        are zero, and were not computed. To it comes that of the sum of those ``beside``, which are no part of the mean.
        RunError: a loss or the gradient is not finite, or nothing was yielded.
        """
        before = metrics.count
        self._policy.velocity_sizes.take()
        for loss in losses:
            metrics.add(loss)
            if (sizes := self._policy.velocity_sizes.take()) and len(loss.values):  # else the loss counts for nothing
                metrics.add_samples("velocity_rms", torch.cat(sizes))
            self._back_propagate(loss)
        metrics.check_finite()
        count = sum(self._ranks.workers.gather(metrics.count - before))
        if not count:
            raise RunError("the algorithm yielded no loss, so nothing would train")
        if beside is not None:
            self._divide(self._own_gradients(), count / share)
            self._add(beside, metrics)
        gradients = self._reduce_gradients()
        if beside is None:  # dividing afterwards gives the exact mean whatever the sizes of the pieces
            self._divide(gradients, count / share)
        norm, *others = self._norms(gradients)
        if not torch.isfinite(norm):  # before clipping, which would spread a NaN to every weight
            raise RunError(self._describe_non_finite())
        metrics.add_step({f"grad_norm/{part}": value for part, value in zip(self._named_parts, others, strict=True)})
        if gradients:
            torch._foreach_mul_(gradients, torch.clamp(self._config.max_grad_norm / (norm + 1e-6), max=1.0))
        return float(norm)

    def _divide(self, gradients: list[Tensor], by: float) -> None:
        if gradients:
            torch._foreach_div_(gradients, by)

    def _own_gradients(self) -> list[Tensor]:
        return [local_shard(p.grad) for p in self._parameters.values() if p.grad is not None]

    def _add(self, losses: Iterable[Loss], metrics: UpdateMetrics) -> None:
        """Back-propagate the sum of ``losses``, of which the metrics alone are taken in."""
        for loss in losses:
            metrics.add_beside(loss)
            self._policy.velocity_sizes.take()
            self._back_propagate(loss)
        metrics.check_finite()

    def _back_propagate(self, loss: Loss) -> None:
        if loss.values.requires_grad or not self._policy.has_experts:  # samples may all be a frozen expert's
            loss.values.sum().backward()  # type: ignore[no-untyped-call]

    @property
    def next_rate(self) -> float:
        """The learning rate of the optimizer step to come; ``rate`` is that of the step made last."""
        return optimizers.learning_rate(self._config, self._steps)

    def apply(self) -> None:
        """One optimizer step along the gradient, which is freed."""
        self.rate = self.next_rate
        self._optimizer.step(self.rate)
        self._optimizer.zero_grad()  # now, so that whatever comes next has its memory
        self._policy.mark_changed()
        self._policy.step_finished(self._steps)
        self._steps += 1
        if self.kl_reference is not None:
            self.kl_reference.step_finished()

    def adapt_kl(self, divergence: float | None) -> None:
        """Have the next iteration's weight of an adaptive KL, and its reference, after one of that mean ``divergence``.

        They are the same on all ranks. RunError: something depends on it, and no loss had a term ``kl``.
        """
        bounded = self.kl_reference if self.kl_reference is not None and self.kl_reference.measured else None
        if self._kl is None and bounded is None:
            return
        if divergence is None:
            how = "is adaptive" if self._kl is not None else "has a bound (refresh.above)"
            raise RunError(f"algorithm.kl {how}, and no loss has a term 'kl' to measure; add it by flowfactory.rl.add_kl")
        divergence = self._ranks.broadcast(divergence)
        if self._kl is not None and self.kl_coefficient is not None:
            self.kl_coefficient = self._kl(self.kl_coefficient, divergence)
        if bounded is not None:
            bounded.iteration_finished(divergence)

    def _reduce_gradients(self) -> list[Tensor]:
        """This rank's part of the gradients, summed over all ranks' losses.

        Those of the ranks that hold one copy of the weights together are summed by every backward; copies are added up here,
        once an update.
        """
        if self._ranks.copies > 1:
            # a transformer may have had samples on some ranks alone; one that had none on any is to have no gradient
            reached = [p.grad is not None for p in self._parameters.values()]
            anywhere = [any(flags) for flags in zip(*self._ranks.gather(reached), strict=True)]
            for parameter, wanted in zip(self._parameters.values(), anywhere, strict=True):
                if wanted and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        gradients = self._own_gradients()
        self._ranks.sum_in_place(gradients)
        return gradients

    def _norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """The L2 norms [1 + parts] of all ``gradients``, and of those of each of the policy's parts."""
        names = [name for name, p in self._parameters.items() if p.grad is not None]
        by_part: dict[str, list[Tensor]] = {part: [] for part in self._named_parts}
        for name, gradient in zip(names, gradients, strict=True):
            if name in self._parts:
                by_part[self._parts[name]].append(gradient)
        return self._ranks.norms([gradients, *by_part.values()])

    def _describe_non_finite(self) -> str:
        """Which weights have a gradient that is not finite on some rank, or that only the norm of all is not."""
        mine = [name for name, p in self._parameters.items() if p.grad is not None and not local_shard(p.grad).isfinite().all()]
        bad = list(dict.fromkeys(name for names in self._ranks.gather(mine) for name in names))
        if bad:
            return f"the gradient of {bad[0]} is not finite ({len(bad)} of {len(self._parameters)} weights)"
        return "the gradient's norm is more than float32 holds, though every part of it is finite; look at the size of the loss"

    def check_weights(self) -> None:
        """RunError: weights, those kept beside them or the optimizer's state are not finite. A joint work of the ranks."""
        state = self.state()
        if bad := self._policy.non_finite(state):
            count = len(self._policy.state()) + len(state)
            raise RunError(
                f"the update left {bad[0]} not finite ({len(bad)} of {count} tensors of weights and optimizer state), and is "
                "not saved; lower training.optimizer.lr or training.max_grad_norm, and begin again with another --out"
            )

    def state(self) -> dict[str, Tensor]:
        """``optimizer/<parameter>/<moment>``, ``steps`` and what changes of a ``kl``, sharded as the weights are.

        It is what a resumed run goes on with.
        """
        state = {f"optimizer/{key}": value for key, value in self._optimizer.state().items()}
        if self.kl_coefficient is not None:
            state["kl_coefficient"] = torch.tensor(self.kl_coefficient, dtype=torch.float64)
        if self.kl_reference is not None:
            state["kl_reference_steps"] = torch.tensor(self.kl_reference.steps)
        for name, learner in self.roles.items():
            state |= {f"role/{name}/{key}": value for key, value in learner.state().items()}
        return {**state, "steps": torch.tensor(self._steps)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state`."""
        prefix = "optimizer/"
        self._optimizer.load_state({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
        self._steps = int(state["steps"])
        if self._steps:
            self.rate = optimizers.learning_rate(self._config, self._steps - 1)
        if self.kl_coefficient is not None:
            self.kl_coefficient = float(state["kl_coefficient"])
        if self.kl_reference is not None:
            self.kl_reference.steps = int(state["kl_reference_steps"])
        for name, learner in self.roles.items():
            own = f"role/{name}/"
            learner.load_state({key.removeprefix(own): value for key, value in state.items() if key.startswith(own)})

    def resumable(self, before: int, now: int) -> str | None:
        """Why the state that ``before`` shards saved cannot be gone on with by ``now``; None where it can, exactly."""
        return optimizers.resumable(self._config.optimizer, before, now, self._parameters)


def _of_role(config: TrainingConfig, role: RoleConfig) -> TrainingConfig:
    """The ``config`` of an optimizer that makes the steps of a role."""
    optimizer = config.optimizer if role.lr is None else config.optimizer.model_copy(update={"lr": role.lr})
    steps = {"updates": config.updates * role.steps, "warmup": config.warmup * role.steps}
    return config.model_copy(update={"optimizer": optimizer, **steps})
