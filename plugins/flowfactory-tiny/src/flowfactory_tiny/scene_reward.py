"""The verifiable reward ``scene``: does the picture show what the prompt says?"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import ComponentConfig, Prompt, Samples, hookimpl, rewards
from flowfactory_tiny.scenes import parse_caption

if TYPE_CHECKING:
    from flowfactory import RunConfig


class SceneConfig(ComponentConfig):
    """Checks count, colour, shape, size, relation and background, in the spirit of GenEval (arXiv:2310.11513); in [0, 1].

    Prompts must be of the tiny world: ``flowfactory_tiny.scenes.parse_caption`` reads them.
    """

    starter_prompts = (
        {"prompt": "a large red circle on white"},
        {"prompt": "a blue square above an orange ring on black"},
        {"prompt": "three yellow triangles on gray"},
        {"prompt": "a green cross on black"},
        {"prompt": "a small cyan ring on white"},
        {"prompt": "two purple squares on gray"},
    )

    mode: Literal["strict", "partial"] = Field(
        "strict", description="strict: 1 if every check holds, else 0; partial: graded credit, the last quarter for strict"
    )

    def check(self, run: RunConfig) -> None:
        """Every prompt that it judges is a caption of the tiny world, which is the only thing this reward can read."""
        rewards.check_prompts(run, self, partial(read_caption, "scene"))
        named = {f"prompts.train.{name}.size": source.size for name, source in run.prompts.named.items() if not source.rewards}
        for key, size in {"sampling.size": run.sampling.size, "evaluation.size": run.evaluation.size, **named}.items():
            if size is not None and size[0] != size[1] and (key != "sampling.size" or None in named.values() or not named):
                raise ValueError(f"reward scene judges square pictures, and {key} is {list(size)}; make it square")

    def weight_bytes(self) -> dict[str, int]:
        return {}

    def build(self, label: str) -> Scene:
        return Scene(label, self.mode)


def read_caption(reward: str, prompt: Prompt) -> None:
    """Raise ValueError, which names ``reward``, where the prompt is no caption of the tiny world."""
    try:
        parse_caption(prompt.text)
    except ValueError as error:
        raise ValueError(f"reward {reward} cannot judge it: {error}") from error


class Scene:
    """Scores [B] in [0, 1]; deterministic."""

    pointwise = True

    def __init__(self, label: str, mode: Literal["strict", "partial"]) -> None:
        self._label, self._mode = label, mode

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """Verify every picture against its prompt."""
        from flowfactory_tiny.verifier import verify  # which computes moments of the shapes as it is imported

        verdicts = verify(samples.media, samples.prompts)
        return {self._label: torch.tensor([getattr(verdict, self._mode) for verdict in verdicts])}
