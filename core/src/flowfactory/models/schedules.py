"""The sigmas of a checkpoint's own scheduler, and shifts by resolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowfactory.errors import UserError
from flowfactory.models.checkpoint_files import one_line
from flowfactory.models.family import Parts


def scheduler_sigmas(parts: Parts, steps: int, **options: Any) -> Tensor:
    """The sigmas [steps + 1] of the checkpoint's own scheduler, with ``options`` of its ``set_timesteps``.

    UserError: the scheduler does not take them.
    """
    scheduler = parts.pipeline.scheduler
    try:
        scheduler.set_timesteps(**({"num_inference_steps": steps} | options))
    except (TypeError, ValueError, AttributeError) as error:
        source = f"model.path: {parts.options.path}: its {type(scheduler).__name__}"
        raise UserError(f"{source} makes no schedule of this model: {one_line(error)}; get the checkpoint's own") from error
    sigmas: Tensor = scheduler.sigmas
    # UniPC starts 1e-6 below 1 for the sake of its logarithms; an SDE whose spread has 1 - sigma below it must not
    return torch.where(sigmas > 1 - 1e-5, torch.ones_like(sigmas), sigmas)


def resolution_shift(parts: Parts, tokens: int, max_shift: float = 1.15) -> float:
    """The logarithm of the shift for a picture of ``tokens``, linear in them as the checkpoint's scheduler says."""
    config = parts.pipeline.scheduler.config
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    slope = (high - low) / (most - least)
    return float(tokens * slope + (low - slope * least))


def even_sigmas(steps: int) -> list[float]:
    """From 1 to 1 / steps, before any shift."""
    return torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()


def shifted_sigmas(parts: Parts, steps: int, shape: tuple[int, ...]) -> Tensor:
    """The scheduler's sigmas [steps + 1] of even ones, shifted by the tokens of latents [C, H, W], two by two each."""
    _, height, width = shape
    shift = resolution_shift(parts, (height // 2) * (width // 2))
    return scheduler_sigmas(parts, steps, sigmas=even_sigmas(steps), mu=shift)
