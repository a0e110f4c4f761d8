"""The config of a run with one more reward, for what rewards say of prompts and sampling before anything is drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowfactory.config.loading import validate
from flowfactory.config.schema import RunConfig
from flowfactory.testing.two_parameter import settings


def config_with_reward(
    folder: Path,
    reward: Mapping[str, Any] | None,
    train: Sequence[Mapping[str, Any]] = ({"prompt": "a"},),
    heldout: Sequence[Mapping[str, Any]] = ({"prompt": "a"},),
    evaluation: Mapping[str, Any] | None = None,
    frames: int | None = None,
    evaluated_frames: int | None = None,
) -> RunConfig:
    """The config of a run with ``reward``, and with ``evaluation`` as the only reward of its evaluations where it is given.

    ``train`` and ``heldout`` are lines of the prompt files. UserError: as ``flowfactory.config.loading.validate``.
    """
    for name, lines in (("train", train), ("heldout", heldout)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    raw = settings(
        folder,
        "grpo",
        rewards={"judge": reward} if reward else {},
        prompts={name: str(folder / f"{name}.jsonl") for name in ("train", "heldout")},
        sampling={"dynamics": "flow-sde", **({"frames": frames} if frames else {})},
        evaluation={
            **({"rewards": {"judge": evaluation}} if evaluation else {}),
            **({"frames": evaluated_frames} if evaluated_frames else {}),
        },
    )
    return validate(raw, folder=folder)
