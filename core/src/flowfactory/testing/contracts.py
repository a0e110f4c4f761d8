"""Contract suites for authors of plugins: ``check_reward``, ``check_model`` and ``check_algorithm``.

Each raises AssertionError with a sentence that names what is off. They run on the CPU in seconds.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_saver import save as write

from flowfactory import flow
from flowfactory.canvas import Canvas
from flowfactory.config.schema import AlgorithmConfig, ComponentConfig, ModelConfig, TrainingConfig
from flowfactory.data.encode_cache import ConditionCache
from flowfactory.data.prompts import Batch, grouped
from flowfactory.errors import RunError, UserError
from flowfactory.flow.dynamics import ODE, FlowSDEConfig
from flowfactory.hooks.calls import Hooks, manager_of
from flowfactory.hooks.specs import hookimpl
from flowfactory.policy.policy import Policy
from flowfactory.rewards.scoring import Rewards
from flowfactory.rl.advantages import normalised
from flowfactory.runs.checkpoints import save
from flowfactory.testing.two_parameter import TwoParameter, TwoParameterConfig
from flowfactory.training.learner import Gathered, Learner
from flowfactory.training.sampler import Sampler, samples_of
from flowfactory.types import (
    HELD_OUT,
    Conditions,
    Dynamics,
    Experience,
    Loss,
    Prompt,
    RunInfo,
    Runtime,
    Samples,
    SamplingPlan,
    Trajectory,
)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Bench:
    """A model with its policy, sampler and plan, ready to draw."""

    hooks: Hooks
    policy: Policy
    sampler: Sampler
    batch: Batch
    plan: SamplingPlan
    conditions: Conditions
    entries: int

    def draw(self, batch_size: int) -> Trajectory:
        """The whole plan, ``batch_size`` at once."""
        return self.sampler.draw(self.conditions, self.plan, batch_size)


def bench(
    model: ModelConfig,
    folder: Path,
    prompts: Sequence[str | Prompt] = ("a", "bb"),
    size: tuple[int, ...] = (4, 4),
    steps: int = 4,
    guidance: float = 1.0,
    group_size: int = 4,
    dynamics: Dynamics | None = None,
    others: Mapping[str, object] | None = None,
    negative: str = "",
    precision: torch.dtype = torch.float32,
) -> Bench:
    """``model`` on the CPU, its conditions cached in ``folder``, with a plan that records every stochastic step.

    ``size`` is height, width and, for videos, frames. ``others`` are components that share its hooks, such as an algorithm
    that wraps ``sample``.
    """
    hooks = Hooks(manager_of({"model": model.build("model"), **(others or {})}))
    trainable = hooks.load(Runtime(CPU, precision))
    policy = Policy(trainable, hooks.log_prob, CPU, precision)
    cache = ConditionCache(hooks.encode, trainable.encoding, folder, CPU, trainable.canvas_matters)
    sampler = Sampler(hooks, policy, cache, trainable, negative)
    told = [prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in prompts]
    batch = grouped([replace(prompt, index=index) for index, prompt in enumerate(told)], group_size)
    chosen = dynamics or FlowSDEConfig().build("dynamics")
    window = chosen.window(steps, 0, flow.generator("window"))
    plan = SamplingPlan(steps, Canvas(*size), guidance, chosen, 0, 0, batch.keys, window, window)
    encoded = cache.prepare(batch.prompts, plan.canvas)
    conditions = sampler.conditions(batch.prompts, guidance, plan.canvas)
    return Bench(hooks, policy, sampler, batch, plan, conditions, encoded)


@dataclass(frozen=True)
class Learning:
    """An algorithm, the two-parameter flow and what it drew, so that losses and gradients can be worked out by hand."""

    hooks: Hooks
    policy: Policy
    experience: Experience

    def move_to(self, p: float, q: float) -> None:
        """Change the two weights, as an update would."""
        with torch.no_grad():
            self.policy.parameters["transformer.p"].fill_(p)
            self.policy.parameters["transformer.q"].fill_(q)
        self.policy.changed()

    def losses(self) -> list[Loss]:
        """All losses of one update, each with its graph."""
        return list(self.hooks.update(self.experience, self.policy))

    def gradient(self, values: Tensor) -> Tensor:
        """Of the sum of ``values`` with respect to (p, q): float64 [2]."""
        weights = self.policy.parameters
        pair = (weights["transformer.p"], weights["transformer.q"])
        return torch.stack(torch.autograd.grad(values.sum(), pair, retain_graph=True)).double()


class Calls:
    """How often the transformers of a policy are called, and how often with a graph."""

    def __init__(self, policy: Policy) -> None:
        self.forwards = self.graphs = 0
        for module in policy.modules.values():
            module.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.forwards += 1
        self.graphs += torch.is_grad_enabled()


def learning(
    algorithm: AlgorithmConfig,
    advantages: Sequence[float],
    folder: Path,
    start: tuple[float, float] = (0.3, -0.2),
    group_size: int = 4,
    dynamics: Dynamics | None = None,
    batch_size: int = 8,
    times_per_forward: int = 1,
) -> Learning:
    """``algorithm`` with what the flow at ``start`` drew: groups of ``group_size`` with ``advantages``, in 4 steps.

    ``folder`` is for the conditions.
    """
    made = bench(
        TwoParameterConfig(p=start[0], q=start[1]),
        folder,
        prompts=["a" * (1 + group) for group in range(len(advantages) // group_size)],
        group_size=group_size,
        dynamics=dynamics,
        others={"algorithm": algorithm.build("algorithm")},
    )
    made.hooks.run_started(RunInfo(folder, None, 1), made.policy)
    plan = made.hooks.plan(0, made.plan)
    drawn = made.sampler.draw(made.conditions, plan, len(plan.keys))
    experience = Experience(
        latents=drawn.latents,
        steps=drawn.steps,
        conditions=made.conditions,
        plan=plan,
        rewards={},
        advantages=torch.tensor(advantages),
        groups=made.batch.groups,
        sigmas=drawn.sigmas,
        batch_size=batch_size,
        times_per_forward=times_per_forward,
    )
    return Learning(made.hooks, made.policy, experience)


class Count:
    """An observer of a run that counts transformer forwards and backwards, in samples: guidance above 1 counts twice.

    ``iterations`` holds a mapping for each record of the run, the one before training first: "sample" to draw, "evaluation",
    "train" to update, differentiably, "no_grad" to update otherwise, and "backward". Preflight's are the first iteration's.
    """

    def __init__(self) -> None:
        self.iterations: list[dict[str, int]] = []
        self._rows: Counter[str] = Counter()
        self._phase: str | None = None

    @hookimpl
    def run_started(self, policy: Policy) -> None:
        """Listen to the transformers."""
        for module in policy.modules.values():
            module.register_forward_hook(self._forward, with_kwargs=True)

    @hookimpl(wrapper=True)
    def sample(self, plan: SamplingPlan) -> Any:
        """Tell drawing from updating."""
        self._phase = "evaluation" if plan.iteration == HELD_OUT else "sample"
        try:
            return (yield)
        finally:
            self._phase = None

    @hookimpl
    def iteration_finished(self) -> None:
        """Begin anew."""
        self.iterations.append(dict(self._rows))
        self._rows.clear()

    def _forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        rows = len(args[0] if args else next(iter(kwargs.values())))
        result = output[0] if isinstance(output, tuple) else output
        result = result[0] if isinstance(result, list) else result  # a tensor a sample, which share one backward
        phase = self._phase or ("train" if torch.is_grad_enabled() else "no_grad")
        self._rows[phase] += rows
        if phase == "train":
            result.register_hook(lambda _: self._rows.update(backward=rows))


def check_reward(
    config: ComponentConfig, samples: Samples, pointwise: bool = True, tolerance: float = 1e-5
) -> dict[str, Tensor]:
    """The scores of ``samples``, after the reward has kept its contract.

    It answers under its label with one finite score a sample, twice the same, leaves its input as it was, and, if
    ``pointwise``, scores a batch as it scores its samples one by one.
    """
    before = samples.media.clone()
    try:
        rewards = Rewards({"under test": config})
        scores = rewards(samples)
    except (RunError, UserError) as error:
        raise AssertionError(str(error)) from error
    assert torch.equal(samples.media, before), "the reward changed the pictures it was given"
    again = rewards(samples)
    assert torch.equal(scores["under test"], again["under test"]), "the reward gives other scores for the same pictures"
    if pointwise:
        for i in range(len(samples.prompts)):
            one = Samples(
                samples.media[i : i + 1],
                samples.prompts[i : i + 1],
                samples.groups[i : i + 1],
                samples.metadata[i : i + 1],
            )
            alone = rewards(one)["under test"]
            assert torch.allclose(alone, scores["under test"][i : i + 1], atol=tolerance), (
                f"sample {i} scores {float(alone):.6g} alone and {float(scores['under test'][i]):.6g} in a batch; "
                "pass pointwise=False if it is meant to look at the group"
            )
    return scores


def check_model(
    config: ModelConfig,
    prompts: Sequence[str | Prompt] = ("a red circle", "two blue squares"),
    size: tuple[int, ...] = (32, 32),
    guidance: float = 1.0,
    tolerance: float = 1e-4,
) -> None:
    """A model keeps its contract.

    Prompts are encoded once; media lie in [0, 1]; the same plan draws the same, in one batch or in several; replaying a
    recorded step gives a ratio of one; every trainable weight gets a finite gradient; save and load give the same weights.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = bench(config, folder, prompts, size, guidance=guidance)
        assert made.entries == len({str(prompt) for prompt in prompts}), "encode was not asked for each distinct prompt once"
        assert bench(config, folder, prompts, size, guidance=guidance).entries == 0, "conditions were not found in the cache"
        whole = made.draw(len(made.plan.keys))
        assert whole.media.shape[0] == len(made.plan.keys), f"media have shape {list(whole.media.shape)}"
        assert not any(drawn.requires_grad for drawn in (whole.media, whole.latents)), "sampling kept a graph"
        assert float(whole.media.min()) >= 0, "media are not in [0, 1]"
        assert float(whole.media.max()) <= 1, "media are not in [0, 1]"
        assert len(whole.steps) == len(made.plan.recorded), "not every step that the plan records is recorded"
        assert torch.equal(whole.latents, made.draw(len(made.plan.keys)).latents), "the same plan drew something else"
        pieces = made.draw(3)
        assert torch.allclose(whole.latents, pieces.latents, atol=tolerance), "the batch size changes what is drawn"
        for step in pieces.steps:
            replayed = made.policy.evaluate(step).log_prob
            assert replayed is not None
            assert step.log_prob is not None
            deviation = float((torch.exp(replayed - step.log_prob) - 1).abs().max().detach())
            assert deviation <= 1e-5, f"replaying a recorded step gives a ratio that is off by {deviation:.1e}"
        _check_gradients(made, whole)
        _check_weights(made, config, folder)


def _check_gradients(made: Bench, drawn: Trajectory) -> None:
    parameters = made.policy.parameters
    assert parameters, "nothing trains"
    reached = set()
    for step in drawn.steps:  # a model may have other weights for other steps
        velocity = made.policy.evaluate(step).velocity
        assert velocity.shape == drawn.latents.shape, f"velocity has shape {list(velocity.shape)}"
        if made.policy.has_experts and not velocity.requires_grad:
            continue
        gradients = torch.autograd.grad(velocity.square().sum(), list(parameters.values()), allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            assert gradient is None or bool(gradient.isfinite().all()), f"the gradient of {parameter} is not finite"
            reached |= {parameter} if gradient is not None else set()
    for parameter in parameters:
        assert parameter in reached, f"{parameter} gets no gradient"


def _check_weights(made: Bench, config: ModelConfig, folder: Path) -> None:
    before = {name: parameter.detach().clone() for name, parameter in made.policy.parameters.items()}
    with torch.no_grad():
        for parameter in made.policy.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=flow.generator("nudge")), alpha=0.01)
    changed = {name: parameter.detach().clone() for name, parameter in made.policy.parameters.items()}
    made.policy.save_trained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        write(made.policy.state(), checkpoint_id=folder, no_dist=True)
    with torch.no_grad():
        for name, parameter in made.policy.parameters.items():
            parameter.copy_(before[name])
    save.load(folder, made.policy)
    for name, parameter in made.policy.parameters.items():
        assert torch.equal(parameter, changed[name]), f"{name} differs after save and load"


def check_algorithm(
    config: AlgorithmConfig, iterations: int = 30, lr: float = 0.02, dynamics: Dynamics | None = None
) -> list[float]:
    """The mean reward of each iteration on a two-parameter flow, after the algorithm has kept its contract.

    Losses are [b], finite and differentiable; they reach every weight; the experience is left as it was; and ``iterations``
    iterations with a reward for bright pictures raise the reward.
    """
    others = {"algorithm": config.build("algorithm")}
    with tempfile.TemporaryDirectory() as name:
        made = bench(TwoParameterConfig(), Path(name), group_size=32, dynamics=dynamics, others=others)
    hooks = made.hooks
    hooks.run_started(RunInfo(Path(), None, iterations), made.policy)
    training = TrainingConfig.model_validate({"optimizer": {"lr": lr}})
    learner = Learner(made.policy, training)
    history = []
    for iteration in range(iterations):
        plan = hooks.plan(iteration, replace(made.plan, iteration=iteration))
        experience, reward = _bright(made, plan)
        history.append(reward)
        if iteration == 0:
            _check_losses(hooks, experience, made.policy)
        learner.step(hooks.update(experience, made.policy), Gathered())
        made.policy.iteration_finished(iteration)
    early, late = sum(history[:5]) / 5, sum(history[-5:]) / 5
    assert late > early, f"{iterations} iterations took the mean reward from {early:.4f} to {late:.4f}; it should rise"
    return history


def _bright(made: Bench, plan: SamplingPlan) -> tuple[Experience, float]:
    drawn = made.sampler.draw(made.conditions, plan, 64)
    rewards = {"bright": samples_of(drawn.media, made.batch).media.flatten(1).mean(1)}
    experience = Experience(
        latents=drawn.latents,
        steps=drawn.steps,
        conditions=made.conditions,
        plan=plan,
        rewards=rewards,
        advantages=normalised(rewards["bright"], made.batch.groups).float(),
        groups=made.batch.groups,
        sigmas=drawn.sigmas,
        batch_size=16,
    )
    return experience, float(rewards["bright"].mean())


def _check_losses(hooks: Hooks, experience: Experience, policy: Policy) -> None:
    before = [
        experience.latents.clone(),
        experience.advantages.clone(),
        *(step.latents.clone() for step in experience.steps),
    ]
    parameters = policy.parameters
    count = 0
    for loss in hooks.update(experience, policy):
        count += 1
        assert loss.values.dim() == 1, f"a loss has shape {list(loss.values.shape)}; yield one value a sample, [b]"
        assert bool(loss.values.isfinite().all()), "a loss is not finite"
        assert loss.values.requires_grad, "a loss has no gradient"
        gradients = torch.autograd.grad(loss.values.sum(), list(parameters.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            assert gradient is not None, f"{name} gets no gradient"
        for name, term in loss.terms.items():
            assert term.requires_grad, f"the term {name!r} has no gradient"
    assert count, "update yielded no loss"
    after = [experience.latents, experience.advantages, *(step.latents for step in experience.steps)]
    assert all(map(torch.equal, before, after)), "update changed the experience it was given"


__all__ = [
    "ODE",
    "Bench",
    "Calls",
    "Count",
    "Learning",
    "TwoParameter",
    "TwoParameterConfig",
    "bench",
    "check_algorithm",
    "check_model",
    "check_reward",
    "learning",
]
