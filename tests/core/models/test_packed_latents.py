"""Latents as tokens of two by two, as FLUX's pipeline has them, and what guidance is done to beside mixing."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import FluxPipeline

from flowfactory.models import Parts, guide_until, norm_ratio, pack_latents, packed_positions, unpack_latents


def test_tokens_are_those_of_flux_and_lead_back() -> None:
    latents = torch.randn(2, 4, 6, 8)
    tokens = pack_latents(latents)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, *latents.shape))
    assert torch.equal(unpack_latents(tokens, 6, 8), latents)
    assert torch.equal(unpack_latents(tokens, 6, 8), FluxPipeline._unpack_latents(tokens, 48, 64, 8))


def test_positions_are_those_of_flux_and_of_each_field() -> None:
    parts = Parts(SimpleNamespace(), SimpleNamespace(), torch.device("cpu"))
    drawn, picture = torch.zeros(1, 4, 6, 8), torch.zeros(1, 4, 4, 2)
    found = packed_positions(parts, [drawn, picture])
    assert torch.equal(found[:12], FluxPipeline._prepare_latent_image_ids(0, 3, 4, found.device, torch.float32))
    assert found[12:].tolist() == [[1, 0, 0], [1, 1, 0]]
    assert packed_positions(parts, [drawn, picture]) is found, "made once"
    assert packed_positions(parts, [drawn]).tolist() == found[:12].tolist()


def test_norms_are_compared_along_their_axes() -> None:
    given, guided = torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), -0.5)
    assert torch.equal(norm_ratio(given, guided, -1), torch.full((2, 3, 1), 4.0))
    assert torch.equal(norm_ratio(given, guided, (1, 2)), torch.full((2, 1, 1), 4.0))


def test_guidance_ends_for_each_sample_by_itself() -> None:
    given, guided = torch.zeros(2, 1, 2), torch.ones(2, 1, 2)
    assert guide_until(torch.tensor([True, False]), given, guided).flatten().tolist() == [0, 0, 1, 1]
