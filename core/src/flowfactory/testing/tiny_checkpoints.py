"""Tokenizers, text encoders, VAEs and transformers of released classes, so small that a test makes them in no time; offline.

Needs transformers, and diffusers for what is of diffusers.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import Regex, pre_tokenizers
from transformers import CLIPTextConfig, CLIPTokenizer, Qwen2Tokenizer, T5Config, T5EncoderModel, T5Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

__all__ = [
    "QWEN_SPECIALS",
    "WORDS",
    "byte_pairs",
    "clip_text",
    "clip_tokenizer",
    "flux_transformer",
    "kl_vae",
    "qwen_tokenizer",
    "scaled_vae",
    "sd3_transformer",
    "t5_text",
    "t5_tokenizer",
]

WORDS = ("a", "photo", "of", "red", "green", "blue", "circle", "square", "cat", "blurry")
"""What the tiny tokenizers know, a token each."""
QWEN_SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
"""The special tokens of Qwen's tokenizers that pipelines use."""


def byte_pairs(words: Iterable[str], end: str = "") -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in which each of ``words`` is one token and any other text is bytes.

    tokenizers' own trainer numbers tokens in the order of hashes, which differs from run to run.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*alphabet, *(letter + end for letter in alphabet)])
    merges = []
    pieces = [[*word[:-1], word[-1] + end] for word in sorted(set(words))]
    while pairs := Counter(pair for piece in pieces for pair in pairwise(piece)):
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append((left, right))
        tokens[left + right] = None
        pieces = [_merge_pair(piece, left, right) for piece in pieces]
    return {token: i for i, token in enumerate(tokens)}, merges


def _merge_pair(piece: Sequence[str], left: str, right: str) -> list[str]:
    result: list[str] = []
    for token in piece:
        if result and (result[-1], token) == (left, right):
            result[-1] += token
        else:
            result.append(token)
    return result


def clip_tokenizer(length: int = 32, count: int = 0) -> CLIPTokenizer:
    """Each of WORDS is one token. Of at least ``count`` tokens, some of which no text has."""
    vocabulary, merges = byte_pairs(WORDS, "</w>")
    vocabulary |= {f"<{n}>": n for n in range(len(vocabulary), count - 2)}
    for special in ("<|startoftext|>", "<|endoftext|>"):  # CLIP pools at the highest id
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def t5_tokenizer(length: int = 32, count: int = 0) -> T5Tokenizer:
    """Each of WORDS is one token; for T5 and UMT5. Of at least ``count`` tokens, some of which no text has."""
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -2.0}
    scores |= dict.fromkeys(string.ascii_letters + string.digits + string.punctuation, -4.0)
    scores |= {f"▁{word}": -1.0 for word in WORDS if len(word) > 1}
    scores |= {f"<{n}>": -20.0 for n in range(len(scores), count)}
    return T5Tokenizer(vocab=list(scores.items()), extra_ids=0, additional_special_tokens=None, model_max_length=length)


def qwen_tokenizer(template: Iterable[str] = (), length: int = 2048) -> Qwen2Tokenizer:
    """Each of WORDS is one token, and each word of ``template``: pipelines cut a template off by its number of tokens."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    lines = [*template, " ".join(WORDS)]
    vocabulary, merges = byte_pairs(word for line in lines for word, _ in split.pre_tokenize_str(line))
    for special in QWEN_SPECIALS:
        vocabulary.setdefault(special, len(vocabulary))
    specials = list(QWEN_SPECIALS[1:])
    return Qwen2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=length, extra_special_tokens=specials)


def clip_text(model: Any, vocabulary: int, width: int) -> Any:
    """A CLIP text encoder of the class ``model``, in eval mode."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
        max_position_embeddings=32,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=1,
        hidden_act="gelu",
    )
    return model(config).eval()


def t5_text(vocabulary: int, width: int, model: Any = T5EncoderModel, config: Any = T5Config) -> Any:
    """A T5 encoder in eval mode: it has dropout otherwise."""
    options = config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
    )
    return model(options).eval()


def kl_vae(widths: Sequence[int], channels: int, shift: float, scale: float = 0.18215, **options: Any) -> Any:
    """An AutoencoderKL that halves each side between two of ``widths``; its latents have ``channels``.

    It normalises by as many groups as divide the widths, 32 at most, unless ``options`` say norm_num_groups.
    """
    from diffusers import AutoencoderKL

    options = {"norm_num_groups": math.gcd(32, *widths), **options}
    return AutoencoderKL(
        block_out_channels=tuple(widths),
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        latent_channels=channels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=shift,
        scaling_factor=scale,
        **options,
    )


def scaled_vae(shift: float, scale: float) -> Any:
    """One in eval mode that halves each side: a picture of 32 pixels has latents of 16, with 4 channels."""
    return kl_vae((8, 16), 4, shift, scale, norm_num_groups=4, layers_per_block=1).eval()


def sd3_transformer(
    size: int, channels: int, layers: int, heads: tuple[int, int], text_width: int, pooled_width: int, **options: Any
) -> Any:
    """An SD3Transformer2DModel for latents of ``size``; ``heads``: how many, and how wide each is."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        num_layers=layers,
        num_attention_heads=heads[0],
        attention_head_dim=heads[1],
        caption_projection_dim=heads[0] * heads[1],
        joint_attention_dim=text_width,
        pooled_projection_dim=pooled_width,
        pos_embed_max_size=size,
        **options,
    )


def flux_transformer(
    channels: int, layers: tuple[int, int], heads: tuple[int, int], text_width: int, pooled_width: int, **options: Any
) -> Any:
    """A FluxTransformer2DModel; ``layers``: double and single ones; ``heads``: how many, and how wide each is."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=channels,
        num_layers=layers[0],
        num_single_layers=layers[1],
        num_attention_heads=heads[0],
        attention_head_dim=heads[1],
        joint_attention_dim=text_width,
        pooled_projection_dim=pooled_width,
        **options,
    )
