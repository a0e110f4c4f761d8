"""Which kernel computes a transformer's attention: the back-ends of diffusers."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import nn

from flowfactory.config.attention import BACKENDS
from flowfactory.errors import UserError


def use_attention(modules: Iterable[nn.Module], attention: str) -> None:
    """Have the attention of ``modules``, of diffusers, computed by ``attention`` of BACKENDS, or as it is by ``auto``.

    UserError: the back-end is not there, or the class computes its attention itself.
    """
    if attention == "auto":
        return
    # not diffusers' other names for these, which reach beyond the module: a VAE is not to run in flash
    from diffusers.models.attention_dispatch import attention_backend

    name = BACKENDS[attention].name
    for module in modules:
        logger = logging.getLogger("diffusers.models.modeling_utils")  # it calls back-ends experimental
        before = logger.disabled
        logger.disabled = True
        try:
            with attention_backend("native"):  # which it puts back after, for whatever else there is in this process
                module.set_attention_backend(name)  # type: ignore[operator]
        except (RuntimeError, ImportError) as error:
            raise UserError(f"model.attention: {attention}: {' '.join(str(error).split())[:200]}; write native") from error
        finally:
            logger.disabled = before
        # what has none of them calls PyTorch's own, which is "native"
        if attention != "native" and not any(_backend(part) == name for part in module.modules()):
            raise UserError(f"model.attention: {type(module).__name__} computes its attention itself; leave it out")


def _backend(part: nn.Module) -> str | None:
    chosen = getattr(getattr(part, "processor", None), "_attention_backend", None)
    return None if chosen is None else str(getattr(chosen, "value", chosen))
