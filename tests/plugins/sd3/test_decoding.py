"""``decode_scaled`` by the VAE at hand: what its class has, its config must say, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2

from flowfactory import UserError
from flowfactory.models import Parts, decode_scaled
from flowfactory.testing.tiny_checkpoints import kl_vae

DC: dict[str, Any] = {
    "latent_channels": 4,
    "attention_head_dim": 4,
    **{f"{side}_block_types": "ResBlock" for side in ("encoder", "decoder")},
    **{f"{side}_block_out_channels": (8, 8) for side in ("encoder", "decoder")},
    **{f"{side}_layers_per_block": (1, 1) for side in ("encoder", "decoder")},
    **{f"{side}_qkv_multiscales": ((), ()) for side in ("encoder", "decoder")},
}


def parts_with(vae: Any) -> Parts:
    return Parts(SimpleNamespace(vae=vae.eval()), SimpleNamespace(path="folder"), torch.device("cpu"))


def test_a_class_without_a_shift_has_none() -> None:
    torch.manual_seed(0)
    vae = AutoencoderDC(**DC, scaling_factor=0.5)
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        expected = vae.eval().decode(latents * 2, return_dict=False)[0] / 2 + 0.5
        assert torch.equal(decode_scaled(parts_with(vae), latents), expected)


def test_a_config_that_lacks_what_the_class_has_is_to_be_got_again() -> None:
    vae = AutoencoderKL(norm_num_groups=4, block_out_channels=(8,), shift_factor=None)
    with pytest.raises(UserError, match=r"^model\.path: the config\.json of the vae of folder has no shift_factor; get it aga"):
        decode_scaled(parts_with(vae), torch.zeros(1, 4, 8, 8))


def test_a_class_without_a_scale_takes_another_function() -> None:
    vae = AutoencoderKLFlux2(
        norm_num_groups=4,
        block_out_channels=(8,),
        down_block_types=["DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D"],
        latent_channels=4,
    )
    told = r"^model: decode_scaled does not fit AutoencoderKLFlux2, which has no scaling_factor; let the family's decode"
    with pytest.raises(UserError, match=told):
        decode_scaled(parts_with(vae), torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(("widths", "groups"), [((8, 8), 8), ((8, 12), 4), ((64, 32), 32)])
def test_a_tiny_vae_may_be_of_any_widths(widths: tuple[int, ...], groups: int) -> None:
    vae = kl_vae(widths, 4, 0.1)
    assert vae.config.norm_num_groups == groups
    with torch.no_grad():
        assert decode_scaled(parts_with(vae), torch.zeros(1, 4, 8, 8)).shape == (1, 3, 16, 16)
