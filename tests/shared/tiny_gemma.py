"""Gemma 2 so small that a test makes one in no time, as Lumina Image 2.0 and Sana have it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from flowfactory.testing.tiny_checkpoints import WORDS, byte_pairs

SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


def gemma_tokenizer(template: Iterable[str] = ()) -> Any:
    """Each of WORDS is one token behind a space, and each word of ``template``."""
    words = [word for line in (*template, " ".join(WORDS)) for word in line.split()]
    vocabulary, merges = byte_pairs(f"▁{word}" for word in words)
    for token in ("▁", "\n", *SPECIALS):
        vocabulary.setdefault(token, len(vocabulary))
    return GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)


def gemma_text(tokenizer: Any, width: int) -> Any:
    """In eval mode, with an embedding for each token of ``tokenizer``."""
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Gemma2Model(config).eval()
