"""Two encoders that meet in one space, such as CLIP's (arXiv:2103.00020): how well a picture and a prompt agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flowfactory.models import check_vocabulary, has_vocabulary, load_tokenizer
from flowfactory.rewards import load_shared
from flowfactory_rewards.reward_model import Scorer, to_pil
from flowfactory_rewards.weights import from_pretrained, load_pretrained

CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""The CLIP that PickScore and HPSv2 are tuned from."""


class ImageEncoder:
    """A ``model`` of transformers with the features of pictures; ``transform``: [n, 3, H, W] in [0, 1] to what it sees."""

    def __init__(self, model: Any, transform: Callable[[Tensor], Tensor]) -> None:
        self.model, self._transform = model, transform

    def embed_images(self, pictures: Tensor) -> Tensor:
        """Their embeddings [n, D] of length 1, float32."""
        values = self._transform(pictures).to(self.model.device, self.model.dtype)
        return _normalize_features(self.model.get_image_features(pixel_values=values))


class DualEncoder(ImageEncoder):
    """With the features of texts too.

    ``tokenize``: n texts to ids [n, L], of one L, so that no prompt depends on the others of its batch.
    """

    def __init__(self, model: Any, transform: Callable[[Tensor], Tensor], tokenize: Callable[[list[str]], Tensor]) -> None:
        super().__init__(model, transform)
        self._tokenize = tokenize

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Their embeddings [n, D] of length 1, float32; equal prompts are embedded once."""
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        ids = self._tokenize(list(places)).to(self.model.device)
        # no mask: CLIP's texts look back alone, from a token before the padding, and SigLIP learned with its padding seen
        return _normalize_features(self.model.get_text_features(input_ids=ids))[[places[prompt] for prompt in prompts]]

    def cosine(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Of each picture with its prompt: [n], in [-1, 1]."""
        return (self.embed_images(pictures) * self.embed_texts(prompts)).sum(1)

    def logit(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """The cosine by the scale the model learned: [n]."""
        scaled: Tensor = self.model.logit_scale.float().exp() * self.cosine(pictures, prompts)
        return scaled


def _normalize_features(features: Any) -> Tensor:
    return functional.normalize(features.pooler_output.float(), dim=-1)


def load_clip(path: str, processor: str, device: torch.device, dtype: torch.dtype) -> DualEncoder:
    """The CLIP in ``path``, whose weights all who ask share, with the tokenizer and the picture processor in ``processor``."""
    from transformers import CLIPImageProcessorPil

    model = load_shared(_load_clip_model, path, device, dtype)
    return DualEncoder(model, load_image_transform(CLIPImageProcessorPil, processor), load_clip_tokenizer(processor, model))


def load_clip_images(path: str, device: torch.device, dtype: torch.dtype) -> ImageEncoder:
    """The same CLIP for pictures alone, which needs no tokenizer."""
    from transformers import CLIPImageProcessorPil

    model = load_shared(_load_clip_model, path, device, dtype)
    return ImageEncoder(model, load_image_transform(CLIPImageProcessorPil, path))


def _load_clip_model(path: str, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import CLIPModel

    return load_pretrained(CLIPModel, path, device, dtype)


def load_image_transform(kind: Any, path: str) -> Callable[[Tensor], Tensor]:
    """The transform of the picture processor in ``path``; of Pillow, whose rounding released code has."""
    found = from_pretrained(kind, path)
    return lambda pictures: found(to_pil(pictures), return_tensors="pt")["pixel_values"]


def load_clip_tokenizer(path: str, model: Any) -> Callable[[list[str]], Tensor]:
    """The tokenizer in ``path``, cut off and filled up to the length that ``model`` has places for."""
    from transformers import CLIPTokenizer

    source = f"the tokenizer in {path}"
    tokenizer = load_tokenizer(CLIPTokenizer, path, source)
    check_vocabulary(tokenizer, model.config.text_config.vocab_size, source)
    length = model.config.text_config.max_position_embeddings
    return lambda texts: (
        tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids
    )


def find_tokenizer(path: str, otherwise: str) -> str:
    """``path`` where it is a folder with a tokenizer of its own, else ``otherwise``."""
    return path if has_vocabulary(Path(path)) else otherwise


def find_processor(path: str, otherwise: str) -> str:
    """``path`` where it is a folder with a tokenizer and a picture processor of its own, else ``otherwise``."""
    names = ("preprocessor_config.json", "processor_config.json")
    return find_tokenizer(path, otherwise) if any((Path(path) / name).is_file() for name in names) else otherwise


def load_cosine_scorer(path: str, processor: str, device: torch.device, dtype: torch.dtype) -> Scorer:
    """Scores by the cosine of a CLIP."""
    return load_clip(path, processor, device, dtype).cosine


def load_logit_scorer(path: str, processor: str, device: torch.device, dtype: torch.dtype) -> Scorer:
    """Scores by the scaled cosine of a CLIP."""
    return load_clip(path, processor, device, dtype).logit
