"""The contract of a model."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict_saver import save as write

from flowfactory import flow
from flowfactory.config.component import ModelConfig
from flowfactory.runs.checkpoints import load
from flowfactory.testing.model_bench import Bench, bench
from flowfactory.types import Prompt, Trajectory


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
    load.load(folder, made.policy)
    for name, parameter in made.policy.parameters.items():
        assert torch.equal(parameter, changed[name]), f"{name} differs after save and load"
