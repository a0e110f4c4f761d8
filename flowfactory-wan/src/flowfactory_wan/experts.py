"""The two transformers of Wan 2.2 A14B: one for high noise, one for low; a checkpoint with one has it for all."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from flowfactory import Index, UserError
from flowfactory.flow import expand_sigma, forward_by_kind
from flowfactory.models import FamilyConfig, Parts, Pretrained
from flowfactory_wan.common import TEXT_LENGTH

HIGH, LOW = "transformer", "transformer_2"


def is_high_noise(parts: Parts, sigma: Tensor) -> Tensor:
    """Which of the samples at sigma [B] the high-noise expert sees: [B], bool."""
    boundary = parts.pipeline.config.get("boundary_ratio")
    if boundary is None:
        return torch.ones_like(sigma, dtype=torch.bool)
    steps = parts.pipeline.scheduler.config.num_train_timesteps
    return torch.ge(sigma * steps, boundary * steps)


def forward_experts(
    parts: Parts, sigma: Tensor, latents: Tensor, timestep: Tensor, embeds: Tensor, image: Tensor | None = None
) -> Tensor:
    """[B, C, F, H, W], each sample from the expert for its sigma [B]; timestep is [B] or [B, tokens].

    image: [B, pictures, 257, E].
    """

    def forward(rows: Index, expert: Hashable) -> Tensor:
        chosen = torch.tensor(list(rows), device=sigma.device)
        found: Tensor = getattr(parts.pipeline, str(expert))(
            hidden_states=latents[chosen].to(embeds.dtype),
            timestep=timestep[chosen],
            encoder_hidden_states=embeds[chosen],
            # several pictures of a sample one after another, as the pipeline has them
            encoder_hidden_states_image=None if image is None else image[chosen].flatten(0, 1),
            return_dict=False,
        )[0]
        return found

    return forward_by_kind([HIGH if high else LOW for high in is_high_noise(parts, sigma).tolist()], forward, parts.agree)


def trained_experts(checkpoint: Pretrained, options: Any) -> tuple[str, ...]:
    """The experts that the options name. UserError: the checkpoint is not one for them."""
    complaint = options.checkpoint_error()
    if complaint:
        raise UserError(complaint)
    if checkpoint.settings.get("boundary_ratio") is None:
        return (HIGH,)
    return {"high": (HIGH,), "low": (LOW,)}.get(options.experts, (HIGH, LOW))


def guide(parts: Parts, given: Tensor, without: Tensor, guidance: float, sigma: Tensor) -> Tensor:
    """Classifier-free guidance, with the low-noise expert's own scale."""
    low = parts.options.guidance_2
    scale = expand_sigma(torch.where(is_high_noise(parts, sigma), guidance, guidance if low is None else low), given)
    return without + scale * (given - without)


class WanConfig(FamilyConfig):
    """What the options of every Wan model share."""

    context_parallel = True

    def encoded_tokens(self) -> int | None:
        """As many for each text."""
        return TEXT_LENGTH

    def check_checkpoint(self) -> None:
        """ValueError: as for every family; or the checkpoint, where it is on this machine, is none for this model."""
        super().check_checkpoint()
        if complaint := self.checkpoint_error():
            raise ValueError(complaint)

    @abstractmethod
    def checkpoint_error(self) -> str | None:
        """One sentence about why the checkpoint does not go with the options, as far as files on this machine tell."""


class ExpertsConfig(WanConfig):
    """The options that only a checkpoint with two experts takes."""

    experts: Literal["both", "high", "low"] | None = Field(
        None, description="which of two experts train: high trains transformer, low transformer_2; both when left out"
    )
    guidance_2: float | None = Field(
        None, ge=1, le=100, description="the low-noise expert's guidance, where guidance is above 1; the same when left out"
    )

    def checkpoint_error(self) -> str | None:
        index = self.checkpoint.config("")
        if index.get("boundary_ratio") is not None and index.get(LOW) in (None, [None, None]):
            return f"model.path: {self.path} has no {LOW}, which its boundary_ratio is for; get it again, whole"
        if not index or index.get("boundary_ratio") is not None:
            return None
        given = [name for name in ("experts", "guidance_2") if getattr(self, name) is not None]
        return f"model.{given[0]}: {self.path} has one transformer, and no second for it; leave it out" if given else None
