"""Tiny random checkpoints of the FLUX pipelines, built without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
)
from PIL import Image
from transformers import (
    CLIPTextModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from flowfactory.testing.tiny_checkpoints import (
    clip_text,
    clip_tokenizer,
    flux_transformer,
    kl_vae,
    qwen_tokenizer,
    t5_text,
    t5_tokenizer,
)

WIDTH = 32
TEXT_WIDTH = 16
ROPE = (4, 6, 6)
FLUX2_ROPE = (4, 4, 4, 4)
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64, "shift": 3.0}
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
    "[/{{ m.role }}]{% endfor %}"
)


def flux1(folder: Path, dev: bool = True, kontext: bool = False) -> Path:
    """A FluxPipeline or a FluxKontextPipeline; ``dev`` has guidance and a dynamic shift, schnell neither."""
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    heads = (WIDTH // sum(ROPE), sum(ROPE))
    transformer = flux_transformer(16, (2, 2), heads, WIDTH, WIDTH, axes_dims_rope=ROPE, guidance_embeds=dev)
    # eval: T5 has dropout otherwise, which from_pretrained turns off
    pipeline = (FluxKontextPipeline if kontext else FluxPipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(**(DYNAMIC if dev else {"shift": 1.0})),
        vae=_flux1_vae(levels=4 if kontext else 2),
        text_encoder=clip_text(CLIPTextModel, len(tokenizer), WIDTH),
        tokenizer=tokenizer,
        text_encoder_2=t5_text(len(tokenizer_2), WIDTH),
        tokenizer_2=tokenizer_2,
        transformer=_decided(transformer),
    )
    pipeline.save_pretrained(folder)
    return folder


def flux2(folder: Path, guidance: bool = True, pixtral: bool = False) -> Path:
    """A Flux2Pipeline; ``pixtral`` gives it the tokenizer of the released ones, which needs torchvision."""
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    torch.manual_seed(0)
    tokenizer: Any = qwen_tokenizer([SYSTEM_MESSAGE, "[system] [/system] [user] [/user]"])
    tokenizer.chat_template = MISTRAL_TEMPLATE
    text_encoder = _mistral(tokenizer)
    if pixtral:
        from transformers import PixtralImageProcessor, PixtralProcessor

        tokenizer.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]})
        text_encoder.resize_token_embeddings(len(tokenizer))
        tokenizer = PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=MISTRAL_TEMPLATE)
    Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=_flux2_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=_flux2_transformer(guidance),
    ).save_pretrained(folder)
    return folder


def klein(folder: Path, distilled: bool = False) -> Path:
    """A Flux2KleinPipeline, base or distilled."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(["user\nassistant\n<think>\n\n</think>\n\n"])
    tokenizer.chat_template = QWEN_TEMPLATE
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=_flux2_vae(),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**_decoder(len(tokenizer), layers=27))).eval(),
        tokenizer=tokenizer,
        transformer=_flux2_transformer(guidance=False),
        is_distilled=distilled,
    ).save_pretrained(folder)
    return folder


def picture(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    """A picture of smooth colours, ``size`` is height and width."""
    source = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=source)
    fine = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].permute(1, 2, 0)
    Image.fromarray((fine * 255).byte().numpy()).save(path)
    return path


def _decoder(vocabulary: int, layers: int) -> dict[str, Any]:
    """As many layers as the pipeline reads hidden states from, and no more than needed of the rest."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": TEXT_WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": TEXT_WIDTH,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }


def _mistral(tokenizer: Any) -> Any:
    vision = {
        "model_type": "pixtral",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 8,
        "patch_size": 16,
        "image_size": 32,
    }
    text = {"model_type": "mistral", **_decoder(len(tokenizer), layers=30)}
    return Mistral3ForConditionalGeneration(Mistral3Config(vision_config=vision, text_config=text)).eval()


def _flux2_transformer(guidance: bool) -> Any:
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=sum(FLUX2_ROPE),
        num_attention_heads=WIDTH // sum(FLUX2_ROPE),
        joint_attention_dim=3 * TEXT_WIDTH,
        timestep_guidance_channels=WIDTH,
        axes_dims_rope=FLUX2_ROPE,
        guidance_embeds=guidance,
    )
    return _decided(transformer)


def _flux1_vae(levels: int) -> Any:
    """``levels`` as in the released VAE make a token of 16 x 16 pixels; fewer make smaller pictures do."""
    small = {"norm_num_groups": 4, "layers_per_block": 1, "mid_block_add_attention": False}
    return _vivid(kl_vae((8,) * levels, 4, 0.1159, 1.3611, **small))


def _flux2_vae() -> Any:
    """A token of 16 x 16 pixels, as in the released VAE, with statistics that are not those of a fresh normalisation."""
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1, mid_block_add_attention=False
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return _vivid(vae)


def _decided(transformer: Any) -> Any:
    """Fresh weights attend to everything alike; with larger ones every token, its place and its time matter."""
    with torch.no_grad():
        for weight in transformer.parameters():
            if weight.dim() > 1:
                weight.mul_(1.7)
    return transformer.eval()


def _vivid(vae: Any) -> Any:
    """Random encoders make almost the same latents of all pictures; these do not."""
    with torch.no_grad():
        vae.encoder.conv_out.weight.mul_(20)
    return vae.eval()
