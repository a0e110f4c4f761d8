"""Classes of diffusers and transformers, imported without the libraries that only others of their classes need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any

from flowfactory.postponed_imports import postponed_imports, settle_imports


def only_diffusers() -> AbstractContextManager[None]:
    """Within it diffusers imports none of the libraries that its transformers, VAEs and schedulers work without."""
    return postponed_imports("transformers", "peft", "scipy", "bitsandbytes")


def library_class(library: str, name: str) -> Any:
    """What ``library``, diffusers or transformers, has under ``name``; None where it has nothing."""
    import_module("torch._C")  # a library is never to be imported over a PyTorch that is postponed
    if library == "diffusers":
        with only_diffusers():
            return getattr(import_module(library), name, None)
    with postponed_imports("scipy", "bitsandbytes"):
        found = getattr(import_module(library), name, None)
        settle_imports("diffusers", library)
    return found


def reads_text(kind: type) -> bool:
    """Whether ``kind`` is a tokenizer or a processor of transformers, none of which is there before that is imported."""
    if "transformers" not in sys.modules:
        return False
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    return issubclass(kind, PreTrainedTokenizerBase | ProcessorMixin)


@contextmanager
def without_peft() -> Iterator[None]:
    """Within it transformers of diffusers run without peft, unless somebody has imported it.

    In every forward they import it to scale adapters, of which there are none before.
    """
    from diffusers import utils

    if "peft" in sys.modules or not getattr(utils, "USE_PEFT_BACKEND", False):
        yield
        return
    utils.USE_PEFT_BACKEND = False
    try:
        yield
    finally:
        utils.USE_PEFT_BACKEND = True
