"""The optimizers of bitsandbytes: whether they are installed, and which of them run on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flowfactory.config.optimizers import OptimizerConfig

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 256
"""Elements that share a scale."""
INSTALL = "pip install 'flowfactory[bitsandbytes]'"


def quantization_unavailable(kind: str | None, key: str = "model.quantize") -> str | None:
    """Why weights cannot be stored as ``kind`` here, as ``key`` says, and what to do; None when they can."""
    if kind == "nf4":
        try:
            import_module("bitsandbytes")
        except ImportError as error:
            return f"{key}: nf4 needs bitsandbytes ({error}); pip install 'flowfactory[bitsandbytes]', or choose int8"
    return None


def optimizer_unavailable(config: OptimizerConfig, device: str, offload: bool = False) -> str | None:
    """Why the optimizer cannot be had on ``device``, as a config names it, and what to do; None where it can."""
    if config.name == "adamw":
        return None
    import torch

    try:
        import_module("bitsandbytes")
    except ImportError as error:
        return f"{config.name} needs bitsandbytes ({error}); {INSTALL}, or choose adamw"
    on_cpu = offload or device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if on_cpu and (reason := _fails_on_cpu(config)):
        return f"this bitsandbytes cannot run {config.name} on the CPU ({reason}); {INSTALL} -U, or choose adamw"
    return None


@cache
def _fails_on_cpu(config: OptimizerConfig) -> str | None:
    """What one step on the CPU ends with; None where it goes well. Which kernels there are is told by nothing else."""
    import torch

    try:
        for bits in (32, config.bits):
            weight = torch.ones(BLOCK)
            optimizer = bitsandbytes_optimizer(config, [weight], bits)
            weight.grad = torch.ones_like(weight)
            optimizer.step()
    except (RuntimeError, AttributeError) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None


def bitsandbytes_optimizer(config: OptimizerConfig, views: Sequence[Tensor], bits: int) -> Any:
    """The optimizer of bitsandbytes over ``views``, with moments in ``bits``; its state is there before the first step."""
    library: Any = import_module("bitsandbytes.optim")
    method = {"adamw": library.AdamW, "lion": library.Lion}[config.method]
    # on the CPU there is nowhere to page to
    paged = config.paged and views[0].device.type != "cpu"
    # its own bound on what is small would look at shards
    optimizer = method(views, **config.model_dump(exclude={"name"}), optim_bits=bits, min_8bit_size=0, is_paged=paged)
    for index, view in enumerate(views):
        optimizer.init_state(optimizer.param_groups[0], view, 0, index)
    return optimizer
