"""What the tests of a family of pictures of texts do with its tiny checkpoints: both the model and diffusers draw of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from adapter_loaders import check_every_loader
from diffusers import DiffusionPipeline
from families import LORA, draw_one_by_one, nudge, open_bench, relative_difference
from saved import save_trained

from flowfactory import Step, Trajectory, flow
from flowfactory.flow.dynamics import ODE
from flowfactory.testing import Bench, bench, check_against_pipeline, draw_with_pipeline
from flowfactory.testing.pipeline_parity import pack_nothing, unpack_nothing

EXACT = 1e-5
PROMPTS = ("a photo of a red circle", "cat")
LONG = "a photo of a red circle and a blue square " * 3


@dataclass(frozen=True)
class TextToImage:
    """A family by its ``config`` and the ``build`` of tiny checkpoints of several kinds below ``folder``.

    given: options of every model. call: the same in the words of the pipeline's call. pack, unpack: see
    :func:`~flowfactory.testing.check_against_pipeline`.
    """

    config: Any
    build: Callable[[Path, str], Path]
    folder: Path
    kind: str
    given: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (32, 48)
    pack: Any = pack_nothing
    unpack: Any = unpack_nothing

    def checkpoint(self, kind: str = "") -> Path:
        """Built once a session; a test that changes files copies the folder first."""
        folder = self.folder / (kind or self.kind)
        return folder if folder.exists() else self.build(folder, kind or self.kind)

    def options(self, kind: str = "", **given: Any) -> Any:
        """The model's, with all weights unless told otherwise."""
        return self.config.model_validate({"path": str(self.checkpoint(kind)), "train": "full", **self.given, **given})

    def pipeline(self, kind: str = "") -> Any:
        """The whole checkpoint as diffusers itself runs it."""
        pipeline = DiffusionPipeline.from_pretrained(self.checkpoint(kind), dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def check(self, prompts: Any = PROMPTS, kind: str = "", options: Any = None, call: Any = None, **given: Any) -> Trajectory:
        """What the model draws, found to be what the pipeline does, to a relative 1e-5 in latents, media and sigmas."""
        given = {"size": self.size, "tolerance": EXACT, "pipeline": self.pipeline(kind), **self.call, **(call or {}), **given}
        return check_against_pipeline(
            self.options(kind, **(options or {})), prompts, pack=self.pack, unpack=self.unpack, **given
        )

    def bench(self, prompts: Any = PROMPTS, kind: str = "", guidance: float = 1.0, negative: str = "", **given: Any) -> Bench:
        """The model with a plan of four steps; all share a cache."""
        size, cache = given.pop("size", self.size), given.pop("cache", self.folder / "cache")
        return open_bench(self.options(kind, **given), cache, prompts, size, 4, guidance, negative)

    def drawn(self, pipeline: Any, made: Bench) -> torch.Tensor:
        """The latents that ``pipeline`` draws of the plan of ``made``."""
        shape = made.draw(1).latents.shape[1:]
        return draw_with_pipeline(pipeline, made, shape, self.pack, self.unpack, **self.call).latents


def check_rows(family: TextToImage, guidance: float, kind: str = "", **given: Any) -> None:
    """Prompts of any lengths share a forward, and each is drawn as by itself."""
    made = family.bench(("cat", LONG, "a", PROMPTS[0]), kind, guidance, "blurry " * 9 if guidance > 1 else "", **given)
    calls: list[int] = []
    transformer = made.policy.modules["transformer"]
    transformer.register_forward_hook(lambda module, args, kwargs, output: calls.append(1), with_kwargs=True)
    together = made.draw(4).latents
    assert len(calls) == 4, "not all of them share a forward"
    assert relative_difference(together, draw_one_by_one(made).latents) < EXACT


def check_adapters(family: TextToImage, folder: Path, guidance: float) -> None:
    """``load_lora_weights`` reads what was trained, and draws it."""
    made, pipeline = family.bench(guidance=guidance, train=LORA), family.pipeline()
    assert relative_difference(made.draw(2).latents, family.drawn(pipeline, made)) < EXACT, "fresh adapters change something"
    nudge(made)
    ours = made.draw(2).latents
    save_trained(made.policy, folder)
    assert relative_difference(ours, family.drawn(pipeline, made)) > 1e-2, "the adapters change nothing to compare"
    pipeline.load_lora_weights(folder)
    assert relative_difference(ours, family.drawn(pipeline, made)) < EXACT
    pipeline.fuse_lora()
    assert relative_difference(ours, family.drawn(pipeline, made)) < 1e-4


def check_exports(family: TextToImage, folder: Path, kind: str | None = None) -> None:
    """Each loader of adapters draws what was trained; ``kind``: see :func:`adapter_loaders.check_every_loader`."""
    made = family.bench(guidance=4.0, train=LORA)
    nudge(made)
    ours, model = made.draw(2).latents, family.options(train=LORA)
    check_every_loader(made.policy, model, kind, ours, family.pipeline, lambda pipeline: family.drawn(pipeline, made), folder)


def check_all_weights(family: TextToImage, folder: Path) -> None:
    """diffusers reads the fully trained transformer, and draws what it does."""
    made, pipeline = family.bench(guidance=4.0), family.pipeline()
    nudge(made)
    ours = made.draw(2).latents
    save_trained(made.policy, folder)
    assert relative_difference(ours, family.drawn(pipeline, made)) > 1e-2, "training changed nothing to compare"
    pipeline.transformer = type(pipeline.transformer).from_pretrained(folder / "transformer")
    assert relative_difference(ours, family.drawn(pipeline, made)) < EXACT


def check_every_weight(family: TextToImage) -> None:
    """Full training under guidance reaches every weight."""
    made = family.bench(guidance=4.0)
    step = Step(flow.noise(made.plan, made.draw(1).latents.shape[1:]), torch.full((2,), 0.7), made.conditions, 4.0, ODE())
    velocity = made.policy.evaluate(step).velocity
    target = torch.randn(velocity.shape, generator=torch.Generator().manual_seed(1))
    parameters = made.policy.parameters
    gradients = torch.autograd.grad((velocity - target).square().sum(), list(parameters.values()))
    assert [name for name, gradient in zip(parameters, gradients, strict=True) if not gradient.any()] == []


def check_bf16(family: TextToImage, folder: Path, train: Any, guidance: float = 4.0) -> dict[str, torch.dtype]:
    """It draws in bf16 and replays what it drew with a ratio of 1; what trains is float32. How each weight is stored."""
    config = family.options(train=train)
    made = bench(config, folder, PROMPTS, family.size, guidance=guidance, group_size=2, precision=torch.bfloat16)
    drawn = made.draw(4)
    assert bool(drawn.media.isfinite().all())
    assert drawn.latents.dtype == torch.float32
    assert len(drawn.steps) > 0
    for step in drawn.steps:
        replayed = made.policy.evaluate(step).log_prob
        assert replayed is not None
        assert step.log_prob is not None
        assert float((torch.exp(replayed - step.log_prob) - 1).abs().max().detach()) < 1e-5
    assert {weight.dtype for weight in made.policy.parameters.values()} == {torch.float32}
    weights = made.policy.modules["transformer"].named_parameters()
    assert {entry["embeds"].dtype for entry in made.conditions.entries} == {torch.bfloat16}
    return {name: weight.dtype for name, weight in weights if "lora" not in name}
