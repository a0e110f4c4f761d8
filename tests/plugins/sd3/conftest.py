"""Tiny random Stable Diffusion 3 checkpoints, built without a network, and what the tests draw from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from flowfactory import Canvas, Conditions, Prompt, Runtime, SamplingPlan, Trainable, Trajectory
from flowfactory.data.batches import make_batch
from flowfactory.data.cache_folder import CacheFolder
from flowfactory.data.encode_cache import EncodeCache
from flowfactory.flow.dynamics import ODE
from flowfactory.hooks.calls import Hooks
from flowfactory.hooks.manager import make_manager
from flowfactory.policy.policy import Policy
from flowfactory.testing.tiny_checkpoints import clip_text, clip_tokenizer, scaled_vae, sd3_transformer, t5_text, t5_tokenizer
from flowfactory.training.sampler import Sampler
from flowfactory_sd3.sd3 import SD3Config

TEXT_LENGTH = 16
CLIP_WIDTH, T5_WIDTH = 16, 32
STATIC = {"shift": 3.0}
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 144, "shift": 3.0}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The encode-once cache of the test, empty at first."""
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class BuildCheckpoint(Protocol):
    """Builds each variant once a session; a test that changes files copies the folder first."""

    def __call__(self, *, t5: bool = True, dual: bool = True, dynamic: bool = False) -> Path: ...


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> BuildCheckpoint:
    """``checkpoint(t5=…, dual=…, dynamic=…)`` is the folder of a pipeline with, or without, each of these."""
    built: dict[tuple[bool, bool, bool], Path] = {}

    def build(*, t5: bool = True, dual: bool = True, dynamic: bool = False) -> Path:
        if (t5, dual, dynamic) not in built:
            folder = tmp_path_factory.mktemp("checkpoint")
            _pipeline(t5, dual, dynamic).save_pretrained(folder)
            built[t5, dual, dynamic] = folder
        return built[t5, dual, dynamic]

    return build


class OpenPipeline(Protocol):
    """Loads a folder."""

    def __call__(self, path: Path, dtype: torch.dtype = torch.float32) -> StableDiffusion3Pipeline: ...


@pytest.fixture(scope="session")
def diffusers_pipeline() -> OpenPipeline:
    """``diffusers_pipeline(folder)`` is the whole checkpoint as diffusers itself runs it."""

    def load(path: Path, dtype: torch.dtype = torch.float32) -> StableDiffusion3Pipeline:
        absent: dict[str, Any] = {}
        if not (path / "text_encoder_3").exists():
            absent = {"text_encoder_3": None, "tokenizer_3": None}
        pipeline = StableDiffusion3Pipeline.from_pretrained(path, dtype=dtype, **absent)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


@dataclass(frozen=True)
class Opened:
    """A model joined to core as a run joins it."""

    hooks: Hooks
    policy: Policy
    cache: EncodeCache
    trainable: Trainable

    def conditions(self, prompts: Sequence[str], guidance: float = 1.0, negative: str = "") -> Conditions:
        sampler = Sampler(self.hooks, self.policy, self.cache, self.trainable, negative)
        return sampler.conditions([Prompt(text, i) for i, text in enumerate(prompts)], guidance, Canvas(32, 32))

    def plan(self, prompts: Sequence[str], size: tuple[int, int], steps: int, guidance: float) -> SamplingPlan:
        batch = make_batch([Prompt(text, i) for i, text in enumerate(prompts)], 1)
        return SamplingPlan(steps, Canvas(*size), guidance, ODE(), seed=3, iteration=0, keys=batch.keys)

    def draw(
        self,
        prompts: Sequence[str],
        size: tuple[int, int] = (32, 32),
        steps: int = 4,
        guidance: float = 1.0,
        negative: str = "",
    ) -> Trajectory:
        plan = self.plan(prompts, size, steps, guidance)
        sampler = Sampler(self.hooks, self.policy, self.cache, self.trainable, negative)
        return sampler.draw(self.conditions(prompts, guidance, negative), plan, len(prompts))


OpenModel = Callable[..., Opened]


@pytest.fixture(scope="session")
def open_with() -> OpenModel:
    """``open_with(cache, folder, train=…)`` is the plugin's model on the folder, in float32 unless told otherwise."""

    def build(cache: Path, path: Path, train: Any = "full", dtype: torch.dtype = torch.float32) -> Opened:
        options = {"path": str(path), "train": train, "max_sequence_length": TEXT_LENGTH}
        config = SD3Config.model_validate(options)
        hooks = Hooks(make_manager({"model": config.build("model")}))
        trainable = hooks.load(Runtime(torch.device("cpu"), dtype))
        policy = Policy(trainable, hooks.log_prob, torch.device("cpu"), dtype)
        return Opened(hooks, policy, EncodeCache(hooks.encode, trainable.encoding, CacheFolder(cache)), trainable)

    return build


@pytest.fixture
def opened(open_with: OpenModel, cache: Path) -> OpenModel:
    """``opened(folder, train=…)``, with the test's own cache."""
    return partial(open_with, cache)


def _pipeline(t5: bool, dual: bool, dynamic: bool) -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    tokenizer_3 = t5_tokenizer() if t5 else None
    # from_pretrained gives modules in eval mode; T5 has dropout otherwise
    return StableDiffusion3Pipeline(
        transformer=_transformer(dual).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**(DYNAMIC if dynamic else STATIC)),
        vae=scaled_vae(shift=0.0609, scale=1.5305),
        text_encoder=clip_text(CLIPTextModelWithProjection, len(tokenizer), CLIP_WIDTH),
        tokenizer=tokenizer,
        text_encoder_2=clip_text(CLIPTextModelWithProjection, len(tokenizer), CLIP_WIDTH),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None if tokenizer_3 is None else t5_text(len(tokenizer_3), T5_WIDTH),
        tokenizer_3=tokenizer_3,
    )


def _transformer(dual: bool) -> Any:
    """Two blocks; with ``dual``, the first attends twice and queries and keys are normalised, as in SD3.5 medium."""
    options = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if dual else {}
    return sd3_transformer(16, 4, 2, (2, 16), T5_WIDTH, 2 * CLIP_WIDTH, **options)
