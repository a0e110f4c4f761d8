"""A second copy of the transformer's linear layers, stored in fewer bits, which takes their place while samples are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class DrawingLayers:
    """The copy, made when it is first asked for, and again when the weights it is of are others.

    modules: the transformers, each with whether its linear layers train; what does not is copied once. blocks: the classes of
    their blocks. Adapters are no part of the copy: they are computed beside it as they are, so that no step of theirs is lost.
    """

    modules: Sequence[tuple[nn.Module, bool]]
    blocks: Sequence[str]
    precision: torch.dtype
    device: torch.device
    _made: dict[int, tuple[tuple[str, int | None], dict[str, nn.Linear]]] = field(default_factory=dict)

    @contextmanager
    def in_place(self, kind: str | None, version: int) -> Iterator[None]:
        """Within it layers stored as ``kind``, of the weights that ``version`` counts, compute; None: the layers themselves.

        UserError: a transformer has no blocks.
        """
        put_back: list[Callable[[], None]] = []
        try:
            for module, trains in () if kind is None else self.modules:
                for name, layer in self._layers(module, str(kind), version if trains else None).items():
                    parent, _, child = name.rpartition(".")
                    put_back.append(_replace(module.get_submodule(parent), child, layer))
            yield
        finally:
            for put in put_back:
                put()

    def _layers(self, module: nn.Module, kind: str, version: int | None) -> dict[str, nn.Linear]:
        from flowfactory.policy.quantization import find_layers, store_layer

        known, made = self._made.pop(id(module), (None, {}))
        if known != (kind, version):
            made = {}  # the one before is freed first
            found = find_layers(module, self.blocks, "sampling.weights_as")
            made = {name: store_layer(layer, kind, self.precision, self.device) for name, layer in found.items()}
        self._made[id(module)] = (kind, version), made
        return made


def _replace(owner: nn.Module, name: str, layer: nn.Module) -> Callable[[], None]:
    """Have ``owner`` run ``layer`` for its part ``name``; what is returned puts its own back."""
    own = owner._modules[name]
    owner._modules[name] = layer

    def put_back() -> None:
        owner._modules[name] = own

    return put_back
