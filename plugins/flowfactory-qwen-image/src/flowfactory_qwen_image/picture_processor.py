"""Texts with pictures to tokens, without torchvision."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2VLProcessor, Qwen3VLProcessor


class PictureProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    """A Qwen2VLProcessor without its part for videos, which alone cannot be made where torchvision is not installed.

    transformers finds the parts of a processor in the signature of its ``__init__``.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)


class PictureProcessor3(Qwen3VLProcessor):  # type: ignore[misc]
    """The same of a Qwen3VLProcessor."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
