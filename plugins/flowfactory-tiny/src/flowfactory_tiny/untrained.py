"""The generator before it is trained: a diffusers StableDiffusion3Pipeline of about 2 million parameters."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from tokenizers import pre_tokenizers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from flowfactory_tiny.scenes import WORDS

SIZE = 32
LATENT_CHANNELS = 8
LATENT_SIZE = 8
MAX_TOKENS = 12
TEXT_WIDTH = 64
WIDTH = 128
HEAD_WIDTH = 32
LAYERS = 3
PATCH = 2


def build_pipeline(seed: int) -> StableDiffusion3Pipeline:
    """An untrained pipeline; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(32, 32, 32),
            decoder_block_out_channels=(32, 32, 32),
            num_encoder_blocks=(0, 1, 1),
            num_decoder_blocks=(2, 2, 1),
            latent_channels=LATENT_CHANNELS,
            scaling_factor=1.0,
            shift_factor=0.0,
        )
        first, second = build_text_encoder(len(build_tokenizer())), build_text_encoder(len(build_tokenizer()))
        transformer = SD3Transformer2DModel(
            sample_size=LATENT_SIZE,
            patch_size=PATCH,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=LAYERS,
            attention_head_dim=HEAD_WIDTH,
            num_attention_heads=WIDTH // HEAD_WIDTH,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=LATENT_SIZE,
            qk_norm="rms_norm",
        )
        init_vae(vae)
    zero_init_modulation(transformer)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=first,
        tokenizer=build_tokenizer(),
        text_encoder_2=second,
        tokenizer_2=build_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    for module in (vae, first, second, transformer):
        module.eval()
    return pipeline


def init_vae(vae: AutoencoderTiny) -> None:
    """Weights that keep the variance through rectifiers (arXiv:1502.01852); every residual block starts as none.

    With the default weights the colours take several times as many steps to appear.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in vae.modules():
        if isinstance(module, AutoencoderTinyBlock):
            nn.init.zeros_(module.conv[-1].weight)
    for last in (vae.encoder.layers[-1], vae.decoder.layers[-1]):
        nn.init.xavier_normal_(last.weight, gain=0.5)


def zero_init_modulation(transformer: SD3Transformer2DModel) -> None:
    """Every block starts as the identity and the output as zero (adaLN-Zero, arXiv:2212.09748)."""
    for name, module in transformer.named_modules():
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def build_text_encoder(vocabulary: int) -> CLIPTextModelWithProjection:
    """A two-layer CLIP text encoder; the end token is the last of the vocabulary and pads too."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=TEXT_WIDTH,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
            hidden_act="gelu",
        )
    )


def build_tokenizer() -> CLIPTokenizer:
    """A tokenizer in which every word of the grammar is one token; any other text is spelled in letters."""
    vocabulary, merges = build_bpe(WORDS)
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def build_bpe(words: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-pair encoding that joins each of `words` into one token.

    The trainer of `tokenizers` numbers its tokens in hash order, which changes from run to run.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    merges = []
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    while pairs := Counter(pair for word in spelled for pair in pairwise(word)):
        pair = max(pairs, key=lambda candidate: (pairs[candidate], candidate))
        merges.append(pair)
        vocabulary.setdefault("".join(pair), len(vocabulary))
        spelled = [merge_pair(word, pair) for word in spelled]
    return vocabulary, merges


def merge_pair(word: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """`word` with each occurrence of `pair` joined, from left to right."""
    joined: list[str] = []
    for piece in word:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
