"""What the tests of every model family do: draw with the plugin, move its weights, train for two iterations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import policy_gradient
import pytest
import torch

from flowfactory import Prompt, Trajectory, UserError
from flowfactory.config.loading import validate
from flowfactory.flow.dynamics import ODE
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.train import train
from flowfactory.testing import Bench, bench
from flowfactory.testing.pipeline_parity import relative_difference as relative_difference
from flowfactory.testing.two_parameter import FILE

LORA = {"lora": {"rank": 3, "alpha": 7.5}}


def open_bench(
    config: Any,
    cache: Path,
    prompts: Sequence[str | Prompt],
    size: tuple[int, ...],
    steps: int = 4,
    guidance: float = 1.0,
    negative: str = "",
    precision: torch.dtype = torch.float32,
) -> Bench:
    """The plugin's model with a plan of one sample a prompt along the ODE; ``draw(batch_size)`` draws it.

    The start of each is ``flow.noise(bench.plan, shape)``.
    """
    return bench(
        config,
        cache,
        prompts,
        size,
        steps,
        guidance,
        group_size=1,
        dynamics=ODE(),
        negative=negative,
        precision=precision,
    )


def nudge(made: Bench, scale: float = 0.3) -> None:
    """Move every trainable weight, as training would."""
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in made.policy.parameters.values():
            spread = float(weight.std()) if weight.numel() > 1 else 0.0
            weight.add_(torch.randn(weight.shape, generator=source), alpha=scale * spread + 0.02)
    made.policy.mark_changed()


def draw_one_by_one(made: Bench) -> Trajectory:
    """The plan drawn a sample at a time."""
    return made.draw(1)


def settings_of(name: str, checkpoint: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """A config, as a mapping: adapters of the model ``name``, two prompts in ``folder``, the algorithm and reward of tests."""
    (folder / "train.txt").write_text("a photo of a red circle\nblue cat\n")
    return {
        "model": {"name": name, "path": str(checkpoint), **options, "train": LORA},
        "algorithm": "reinforce",
        "rewards": {"light": "bright"},
        "prompts": {"train": str(folder / "train.txt")},
        "sampling": {"size": [32, 32], "guidance": 4, "dynamics": "flow-sde"},
        "plugins": [FILE, policy_gradient.__file__],
    }


def check_sizes(settings: dict[str, Any], section: str, size: list[int], nearest: list[int]) -> None:
    """A config with ``size`` in ``section`` is refused with the ``nearest`` that can be drawn, and one with that is taken."""
    settings.setdefault(section, {})["size"] = size
    with pytest.raises(UserError, match=rf"{section}\.size {re.escape(str(size))}.*nearest is {re.escape(str(nearest))}$"):
        validate(settings)
    settings[section]["size"] = nearest
    assert validate(settings)


def train_two_iterations(
    model: Mapping[str, Any],
    algorithm: Mapping[str, Any],
    prompts: Path,
    folder: Path,
    say: Callable[[str], None] = lambda _: None,
    resume: bool = False,
    **sections: Any,
) -> RunDirectory:
    """A run of two iterations in ``folder/run``, with an evaluation before and after; ``sections`` are set on top."""
    raw: dict[str, Any] = {
        "model": dict(model),
        "algorithm": dict(algorithm),
        "rewards": {"light": "bright"},
        "prompts": {"train": str(prompts), "heldout": str(prompts)},
        "sampling": {"groups": 2, "group_size": 2, "steps": 3, "batch_size": 4, "dynamics": "flow-sde"},
        "training": {"iterations": 2, "batch_size": 4, "optimizer": {"lr": 1e-2}},
        "output": {"dir": str(folder / "run")},
        "plugins": [FILE, policy_gradient.__file__],
        "device": "cpu",
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section} if isinstance(section, Mapping) else section
    return train(validate(raw), resume, say=say)
