"""The attention back-ends of diffusers: which are used, and where each would do nothing or harm."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

from flowfactory.config.attention import BACKENDS, attention_untrainable
from flowfactory.errors import UserError
from flowfactory.models.attention import use_attention
from flowfactory.models.family_model import channels_last
from flowfactory.testing import tiny_checkpoints


def flux_transformer() -> nn.Module:
    module: nn.Module = tiny_checkpoints.flux_transformer(
        4, (1, 1), (2, 16), text_width=8, pooled_width=8, axes_dims_rope=(4, 6, 6), guidance_embeds=True
    )
    return module


def chosen(module: nn.Module) -> set[str]:
    found = [getattr(getattr(part, "processor", None), "_attention_backend", None) for part in module.modules()]
    return {getattr(backend, "value", backend) for backend in found if backend is not None}


def test_auto_leaves_the_transformer_as_it_is() -> None:
    module = flux_transformer()
    use_attention([module], "auto")
    assert chosen(module) == set()


def test_a_backend_is_that_of_this_transformer_alone() -> None:
    module, other, said = flux_transformer(), flux_transformer(), list[str]()
    logger, listener = logging.getLogger("diffusers.models.modeling_utils"), logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(listener)
    try:
        use_attention([module], "cudnn")
    finally:
        logger.removeHandler(listener)
    assert chosen(module) == {"_native_cudnn"}
    assert chosen(other) == set()
    x = torch.randn(1, 4, 2, 8)  # what asks for no back-end, such as a VAE, is computed on the CPU as before
    assert torch.equal(dispatch_attention_fn(x, x, x), dispatch_attention_fn(x, x, x, backend="native"))
    assert not said
    assert not logger.disabled


def test_a_backend_that_is_not_installed_is_named() -> None:
    with pytest.raises(UserError, match=r"^model\.attention: flash: .*flash-attn.*; write native$"):
        use_attention([flux_transformer()], "flash")


def test_a_transformer_that_computes_its_attention_itself_takes_native_alone() -> None:
    from diffusers import SD3Transformer2DModel

    module = SD3Transformer2DModel(
        sample_size=8,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=8,
    )
    use_attention([module], "native")
    told = r"^model\.attention: SD3Transformer2DModel computes its attention itself; leave it out$"
    with pytest.raises(UserError, match=told):
        use_attention([module], "cudnn")


def test_those_without_a_backward_pass_are_for_drawing_alone() -> None:
    assert {name for name in BACKENDS if attention_untrainable(name)} == {"flash3", "sage"}
    assert attention_untrainable("auto") is None


def test_native_has_the_gradients_that_auto_has() -> None:
    torch.manual_seed(0)
    module = flux_transformer()

    def gradient() -> torch.Tensor:
        torch.manual_seed(1)
        size = module.config
        given = {
            "hidden_states": torch.randn(1, 4, size.in_channels),
            "encoder_hidden_states": torch.randn(1, 3, size.joint_attention_dim),
            "pooled_projections": torch.randn(1, size.pooled_projection_dim),
            "timestep": torch.tensor([0.5]),
            "img_ids": torch.zeros(4, 3),
            "txt_ids": torch.zeros(3, 3),
            "guidance": torch.tensor([3.5]) if size.guidance_embeds else None,
        }
        module.zero_grad()
        module(**given, return_dict=False)[0].square().mean().backward()
        found = module.x_embedder.weight.grad
        assert found is not None
        return found.clone()

    before = gradient()
    use_attention([module], "native")
    assert torch.equal(gradient(), before)


def test_a_vae_whose_kernels_are_channels_last_decodes_the_same() -> None:
    torch.manual_seed(0)
    vae = tiny_checkpoints.kl_vae((8, 16), 4, 0.0, norm_num_groups=4).eval()
    latents = torch.randn(2, vae.config.latent_channels, 4, 4)
    with torch.no_grad():
        before = vae.decode(latents).sample
        channels_last(vae)
        after = vae.decode(latents).sample
    assert vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
