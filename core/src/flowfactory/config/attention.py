"""The attention back-ends of diffusers: what each is called here, what it needs, and whether it has a backward pass."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig

Attention = Literal["auto", "native", "cudnn", "flash", "flash3", "sage"]


class Backend(NamedTuple):
    """Its name in diffusers, the module that it is in and the command that installs it, and what it can do."""

    name: str
    module: str = "torch"
    install: str = ""
    on_cpu: bool = False
    has_backward: bool = True
    takes_masks: bool = True


BACKENDS = {
    "native": Backend("native", on_cpu=True),
    "cudnn": Backend("_native_cudnn"),
    "flash": Backend("flash", "flash_attn", "pip install flash-attn", takes_masks=False),
    # an operator of diffusers' own, for which no backward is registered
    "flash3": Backend("_flash_3", "flash_attn_interface", "build it from its sources", has_backward=False, takes_masks=False),
    "sage": Backend("sage", "sageattention", "pip install sageattention", has_backward=False, takes_masks=False),
}


def attention_unavailable(attention: str, run: RunConfig, masked: bool) -> str | None:
    """Why a transformer, ``masked`` where its attention is, cannot run so, and what to do; None where it can."""
    backend = BACKENDS.get(attention)
    if backend is None or backend.on_cpu:
        return None
    if run.device == "cpu":
        return f"model.attention: {attention} runs on CUDA alone, and device is cpu; write native"
    if run.training.precision == "float32":
        return f"model.attention: {attention} computes in 16 bits alone; set training.precision: bf16, or write native"
    if masked and not backend.takes_masks:
        return f"model.attention: {attention} takes no mask, and the attention of this model has one; write native or cudnn"
    if find_spec(backend.module) is None:
        return (
            f"model.attention: {attention} needs {backend.module}, which is not installed; {backend.install}, or write native"
        )
    return None


def attention_untrainable(attention: str) -> str | None:
    """Why nothing can be trained through it, and what to do; None where it can."""
    if attention not in BACKENDS or BACKENDS[attention].has_backward:
        return None
    others = ", ".join(name for name, backend in BACKENDS.items() if backend.has_backward)
    return f"model.attention: {attention} has no backward pass, so that nothing can be trained; take one of {others}"
