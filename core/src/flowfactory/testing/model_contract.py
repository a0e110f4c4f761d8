"""The contract of a model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from flowfactory import flow
from flowfactory.config.component import ModelConfig
from flowfactory.distributed.ranks import ALONE
from flowfactory.errors import RunError, UserError
from flowfactory.models.family_config import FamilyConfig
from flowfactory.policy import blocks
from flowfactory.policy.policy import Policy
from flowfactory.runs.checkpoints import load
from flowfactory.runs.checkpoints.save import save_weights
from flowfactory.testing.model_bench import Bench, bench
from flowfactory.training.inspection import check_range
from flowfactory.training.rollouts import roll_out
from flowfactory.types import Prompt, Step, Trainable, Trajectory


def check_model(
    config: ModelConfig,
    prompts: Sequence[str | Prompt] = ("a red circle", "two blue squares beside a small green triangle"),
    size: tuple[int, ...] = (32, 32),
    guidance: float = 1.0,
    tolerance: float = 1e-4,
) -> Trainable:
    """What the model loads, after it has kept its contract.

    Prompts are encoded once, and other texts to other conditions; sigmas fall from 1 to 0; media have the size of the canvas,
    are finite and, as they are decoded, in [0, 1] up to a decoder's overshoot; the same plan draws the same, in one batch or in
    several, which mix prompts of different lengths; replaying a recorded step gives a ratio of one; every trainable weight gets
    a finite gradient; blocks name classes that are there; save and load give the same weights. A model that encodes media makes
    finite latents of them, of the shape of those that it draws, the same of each alone.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _refusals_asserted():
            made = bench(config, folder, prompts, size, guidance=guidance)
        assert made.entries == len({str(prompt) for prompt in prompts}), "encode was not asked for each distinct prompt once"
        assert bench(config, folder, prompts, size, guidance=guidance).entries == 0, "conditions were not found in the cache"
        with _refusals_asserted():
            blocks.check_names([*made.trainable.modules.values(), *made.trainable.frozen.values()], made.trainable.blocks)
            _check_conditions(made)
            whole = roll_out(made.sampler, made.batch, made.conditions, made.plan, len(made.plan.keys), ALONE).trajectory
            assert whole.overshoot is not None
            check_range(whole.overshoot.tolist())
        assert not any(drawn.requires_grad for drawn in (whole.media, whole.latents)), "sampling kept a graph"
        assert len(whole.steps) == len(made.plan.recorded), "not every step that the plan records is recorded"
        assert torch.equal(whole.latents, made.draw(len(made.plan.keys)).latents), "the same plan drew something else"
        _check_encode_media(made, config, whole, tolerance)
        pieces = made.draw(3)
        assert torch.allclose(whole.latents, pieces.latents, atol=tolerance), (
            "the batch size changes what is drawn: a sample looks at others, or at padding that a mask should hide"
        )
        check_replay(made.policy, pieces.steps)
        _check_gradients(made, whole)
        _check_weights(made, config, folder)
    return made.trainable


def check_replay(policy: Policy, steps: Iterable[Step]) -> None:
    """Each of the recorded ``steps`` has the log-density that it was drawn with."""
    for step in steps:
        replayed = policy.evaluate(step).log_prob
        assert replayed is not None
        assert step.log_prob is not None
        deviation = float((torch.exp(replayed - step.log_prob) - 1).abs().max().detach())
        assert deviation <= 1e-5, f"replaying a recorded step gives a ratio that is off by {deviation:.1e}"


@contextmanager
def _refusals_asserted() -> Iterator[None]:
    try:
        yield
    except (UserError, RunError) as error:
        raise AssertionError(str(error)) from error


def _check_conditions(made: Bench) -> None:
    """Of each prompt and its negative one; and of the first with another text, beside the same pictures and videos."""
    different = list({prompt.index: prompt for prompt in made.batch.prompts}.values())
    made.sampler.check_conditions([(different, made.plan.canvas)])
    first, texts = different[0], {prompt.text for prompt in different}
    if first.media or len(texts) == 1:
        other = next((text for text in texts if text != first.text), f"no {first.text} but two green triangles")
        made.sampler.check_conditions([((first, replace(first, text=other)), made.plan.canvas)])


def _check_encode_media(made: Bench, config: ModelConfig, drawn: Trajectory, tolerance: float) -> None:
    if not made.hooks.encodes_media or (isinstance(config, FamilyConfig) and config.family.encode_media is None):
        return
    media = drawn.media.clamp(0, 1)
    with _refusals_asserted():
        latents = made.hooks.encode_media(media)
        alone = made.hooks.encode_media(media[:1])
    shapes = list(latents.shape), list(drawn.latents.shape)
    assert shapes[0] == shapes[1], f"encode_media returned latents of shape {shapes[0]}, and sample of shape {shapes[1]}"
    assert bool(latents.isfinite().all()), "encode_media returned latents that are not finite"
    assert torch.allclose(latents[:1], alone, atol=tolerance), (
        "encode_media returned something else of the same media: take the mean, and look at each alone"
    )


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
    save_weights(made.policy, folder)
    with torch.no_grad():
        for name, parameter in made.policy.parameters.items():
            parameter.copy_(before[name])
    load.load(folder, made.policy)
    for name, parameter in made.policy.parameters.items():
        assert torch.equal(parameter, changed[name]), f"{name} differs after save and load"
