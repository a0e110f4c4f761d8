"""Adapters that training starts from: what trains, or a part of the frozen weights that new ones go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.functional import pad

from flowfactory.config.warm_start import find_adapters, is_base, started_from
from flowfactory.errors import UserError
from flowfactory.lora_targets import adaptable_layers, is_named, kinds_of
from flowfactory.policy.adapter_files import Factors, read_factors
from flowfactory.policy.lora import ADAPTER, BASE, Adapters
from flowfactory.policy.without_gradients import without_gradients
from flowfactory.stored_weights import place

if TYPE_CHECKING:
    from flowfactory.types import Trainable

KEY = "model.train.lora.from"


@dataclass(frozen=True)
class StartingAdapters:
    """{module: {layer: factors}} of what was read at ``path``; ``base``: they are a part of the frozen weights."""

    path: Path
    base: bool
    factors: Mapping[str, Mapping[str, Factors]]

    def sentence(self, taught_by_base: bool = False) -> str:
        """What they are, and which weights are the reference of a KL, or the teacher."""
        count = sum(map(len, self.factors.values()))
        ranks = sorted({each.rank for layers in self.factors.values() for each in layers.values()})
        rank = " to ".join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))
        told = f"adapters of rank {rank} on {count} layers from {self.path}"
        if self.base:
            followed = "teacher" if taught_by_base else "reference"
            return f"{told} are added to the frozen weights, which are the {followed}; new ones train on top"
        if taught_by_base:
            return f"training starts from {told}; the teacher is the model without them, unless they are written as: base"
        return f"training starts from {told}, which are the reference"

    def adapters(self, name: str, module: nn.Module) -> Adapters:
        """What is to go on ``module``: one rank for all its layers, of the largest where they differ, and one alpha."""
        layers = self.factors[name]
        rank = max(each.rank for each in layers.values())
        return Adapters(rank, rank * self._scale(name), _targets(layers, module))

    def _scale(self, name: str) -> float:
        """alpha / rank that all layers have; 1 where they differ in it or in their rank, and it is a part of the numbers."""
        found = {(each.rank, each.scale) for each in self.factors[name].values()}
        return next(iter(found))[1] if len(found) == 1 else 1.0

    @without_gradients
    def fill(self, name: str, module: nn.Module) -> None:
        """Give the adapters on ``module``, those of :meth:`adapters`, their numbers. UserError: a layer is of another shape."""
        scale, parameters = self._scale(name), dict(module.named_parameters())
        for layer, each in self.factors[name].items():
            wanted = [f"{layer}.{half}" for half in _names(each, ADAPTER)]
            down, up = (parameters[key] for key in wanted)
            missing = len(down) - each.rank
            values = (
                pad(each.down, (0, 0) * (each.down.dim() - 1) + (0, missing)),
                pad(each.up * (each.scale / scale), (0, 0) * (each.up.dim() - 2) + (0, missing)),
            )
            for parameter, value in zip((down, up), values, strict=True):
                if parameter.shape != value.shape:
                    raise UserError(_of_another_shape(self.path, layer, value, parameter))
                parameter.copy_(value)

    @without_gradients
    def fuse(self, modules: Mapping[str, nn.Module]) -> None:
        """Add them to the weights of ``modules``. UserError: a layer is of another shape."""
        for name, layers in self.factors.items():
            there = adaptable_layers(modules[name])
            for layer, each in layers.items():
                weight: Any = there[layer].weight
                added = each.product()
                if weight.shape != added.shape:
                    raise UserError(_of_another_shape(self.path, layer, added, weight))
                if weight.is_meta:  # nothing but shapes is known
                    continue
                place(there[layer])
                there[layer].weight = nn.Parameter((weight.float() + added).to(weight.dtype), weight.requires_grad)

    def frozen_state(self) -> dict[str, Tensor]:
        """What a checkpoint has of those that are a part of the frozen weights, so that an export has them too."""
        if not self.base:
            return {}
        return {
            f"{name}.{layer}.{half}": value
            for name, layers in self.factors.items()
            for layer, each in layers.items()
            for half, value in zip(_names(each, BASE), (each.down.float(), each.up.float() * each.scale), strict=True)
        }


def read_starting_adapters(trainable: Trainable) -> StartingAdapters | None:
    """What ``trainable`` is to start from; None where it starts as it is. UserError: it cannot be read, or does not fit."""
    path = None if trainable.training == "full" else started_from(trainable.training.lora)
    if path is None:
        return None
    try:
        files = find_adapters(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{KEY}: {error}") from error
    factors: dict[str, dict[str, Factors]] = {}
    layers = {name: adaptable_layers(module) for name, module in trainable.modules.items()}
    for name, file in files.items():
        if name not in trainable.modules:
            trained = " and ".join(trainable.modules)
            raise UserError(f"{KEY}: {file} is for {name}, and this run trains {trained}; name the file that is meant")
        try:
            for module, own in read_factors(file, name, layers, trainable.convert_adapters).items():
                factors.setdefault(module, {}).update(own)
        except UserError as error:
            raise UserError(f"{KEY}: {error}") from error
    if lacking := [name for name in trainable.modules if name not in factors]:
        raise UserError(f"{KEY}: {path} has adapters for {' and '.join(factors)}, and none for {lacking[0]}, which trains too")
    first = next(iter(files.values()))
    return StartingAdapters(first if path.is_file() else first.parent, is_base(trainable.training.lora), factors)


def _names(factors: Factors, adapter: str) -> tuple[str, str]:
    """What the two factors are called below their layer."""
    if factors.embedding:
        return f"lora_embedding_A.{adapter}", f"lora_embedding_B.{adapter}"
    return f"lora_A.{adapter}.weight", f"lora_B.{adapter}.weight"


def _targets(layers: Mapping[str, Factors], module: nn.Module) -> tuple[str, ...]:
    """Names that are those of ``layers`` and no others: endings where these do, else the whole names."""
    endings = kinds_of(layers)
    named = [name for name, _ in module.named_modules() if any(is_named(name, ending) for ending in endings)]
    return tuple(sorted(endings if set(named) == set(layers) else layers))


def _of_another_shape(path: Path, layer: str, found: Tensor, wanted: Tensor) -> str:
    told = f"{list(found.shape)} of {layer}, and this model takes {list(wanted.shape)}"
    return f"{KEY}: {path} holds {told}; the adapters are of another model"
