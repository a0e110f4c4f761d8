"""Teachers: other weights over the base that is trained on, which are asked and never trained.

What a teacher adds to a layer is added to what the layer answers, by a hook, since its rank and layers may be others than those
of the student. Nothing of the student's weights is touched, and a teacher rests in host memory until it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flowfactory.config.warm_start import find_adapters, whole_weights
from flowfactory.device_copies import send
from flowfactory.distributed.sharding import as_shard, local_shard
from flowfactory.errors import RunError, UserError
from flowfactory.policy import lora
from flowfactory.policy.adapter_files import Factors, read_factors
from flowfactory.policy.kept_weights import REFERENCE, KeptWeights
from flowfactory.policy.merging import merge, pays
from flowfactory.policy.transformers import Transformers

KEY = "algorithm.teachers"
ReadCheckpoint = Callable[[Path, Mapping[str, Tensor]], None]
"""Reads into tensors, by the names of the parameters, this rank's rows of what a checkpoint trained."""


class _Added(NamedTuple):
    """What is added to a layer's answer to x: ``scale`` times (x downᵀ) upᵀ."""

    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True)
class _Teacher:
    """Either what it adds to the frozen base, by layers of each module; or all its weights, this rank's part of each."""

    added: Mapping[tuple[str, str], list[_Added]]
    weights: Mapping[str, Tensor] | None = None


class Teachers:
    """The teachers of the student whose weights ``kept`` owns, by their names.

    ``read_checkpoint`` reads those that are all weights of a run; runs set it.
    """

    def __init__(self, kept: KeptWeights, transformers: Transformers, device: torch.device, trains: bool = True) -> None:
        self._kept, self._transformers, self._device = kept, transformers, device
        self._trains = trains
        self._known: dict[str, _Teacher] = {}
        self.read_checkpoint: ReadCheckpoint | None = None

    def read(self, paths: Mapping[str, Path]) -> None:
        """Read the teachers at ``paths``, a file or folder of adapters or a run each, when a run starts.

        Blocks run as they are from now on, since compiled ones would not see what is added inside them. A student that trains
        whole keeps what it starts from, which adapters add to. Where nothing trains none is read. UserError: one cannot be
        read, or is of another model.
        """
        if not self._trains:
            return
        self._transformers.stop_compiling()
        for name, path in paths.items():
            try:
                checkpoint = whole_weights(path)
                found = _Teacher(self._read_adapters(path)) if checkpoint is None else self._read_whole(checkpoint)
            except (UserError, RunError, ValueError, OSError) as error:
                raise UserError(f"{KEY}.{name}: {error}") from error
            self._known[name] = found
        if not self._transformers.lora and any(teacher.weights is None for teacher in self._known.values()):
            self._kept.keep_reference()

    @contextmanager
    def teaching(self, name: str) -> Iterator[None]:
        """Within it forwards, which are to have no gradient, are those of the teacher ``name``. RunError: none was read so."""
        if name not in self._known:
            raise RunError(f"no teacher called {name!r} was read; read it when the run starts")
        teacher = self._known[name]
        with ExitStack() as stack:
            stack.enter_context(self._base(teacher))
            for (module, layer), added in teacher.added.items():
                here = [_Added(send(one.down, self._device), send(one.up, self._device), one.scale) for one in added]
                handle = self._transformers.layers[module][layer].register_forward_hook(_adding(here))
                stack.callback(handle.remove)
            yield

    def _base(self, teacher: _Teacher) -> AbstractContextManager[object]:
        """Within it the weights are those that ``teacher`` adds to."""
        if teacher.weights is not None:
            return self._kept.placed(teacher.weights)
        if self._transformers.lora:
            return lora.adapters_disabled(self._transformers.modules.values())
        return self._kept.using(REFERENCE)

    def _read_adapters(self, path: Path) -> dict[tuple[str, str], list[_Added]]:
        """What the adapters at ``path`` add, less what is a part of the frozen weights here and not of the base."""
        found: dict[tuple[str, str], list[_Added]] = {}
        layers, convert = self._transformers.layers, self._transformers.convert_adapters
        for module, file in find_adapters(path).items():
            if module not in layers:
                raise UserError(
                    f"{file} is for {module}, and this model has {' and '.join(layers)}; name the file that is meant"
                )
            for name, own in read_factors(file, module, layers, convert).items():
                for layer, factors in own.items():
                    found[name, layer] = [_added(file, layer, factors, layers[name][layer])]
        start = self._transformers.start
        if start is None or not start.base:
            return found
        for name, fused in start.factors.items():
            for layer, factors in fused.items():
                less = _added(start.path, layer, factors, layers[name][layer])
                found.setdefault((name, layer), []).append(less._replace(scale=-less.scale))
        return found

    def _read_whole(self, checkpoint: Path) -> _Teacher:
        """All weights of a run's ``checkpoint``. UserError: this one trains adapters. RunError: it is of another model."""
        if self._transformers.lora:
            raise UserError(
                f"{checkpoint} is of a run that trained all weights, which are no addition to those below adapters; take "
                "model.train: full, or a teacher with adapters"
            )
        parameters = {name: parameter.detach() for name, parameter in self._kept.parameters.items()}
        if self.read_checkpoint is None:
            raise RunError(f"{checkpoint} is a checkpoint, which is read within a run alone")
        own = {name: torch.empty_like(local_shard(parameter), device="cpu") for name, parameter in parameters.items()}
        self.read_checkpoint(checkpoint, {name: as_shard(part, parameters[name]) for name, part in own.items()})
        return _Teacher({}, own)


def _added(file: Path, layer: str, factors: Factors, to: nn.Module) -> _Added:
    """What ``factors`` add to the layer ``to``. UserError: it is of another shape, or of a kind that no teacher adds to."""
    if not isinstance(to, nn.Linear):
        raise UserError(f"{file}: {layer} is no linear layer, and a teacher's adapters are on such alone; leave it out of them")
    found, wanted = [len(factors.up), *factors.down.shape[1:]], [to.out_features, to.in_features]
    if found != wanted or factors.up.dim() != 2:
        raise UserError(f"{file} is for {found} at {layer}, where this model has {wanted}; it is of another model")
    return _Added(factors.down.float(), factors.up.float(), factors.scale)


def _adding(added: list[_Added]) -> Callable[[Any, Any, Tensor], Tensor]:
    """A hook of a linear layer, which answers to the bit what the student's would with the same adapters."""

    def add(layer: nn.Linear, given: tuple[Tensor, ...], answer: Tensor) -> Tensor:
        x = given[0]
        # as AdaptedLinear computes there
        if len(added) == 1 and _is_exact(x, layer) and pays(x, layer.in_features, layer.out_features):
            return linear(x, merge(layer.weight, *added[0]), layer.bias)
        for one in added:
            answer = answer + (one.scale * linear(linear(x, one.down.to(x.dtype)), one.up.to(x.dtype))).to(answer.dtype)
        return answer

    return add


def _is_exact(x: Tensor, layer: nn.Linear) -> bool:
    """Whether nothing is rounded to fewer bits there than float32 has."""
    plain = type(layer) is nn.Linear and {x.dtype, layer.weight.dtype} == {torch.float32}
    return plain and not torch.is_autocast_enabled(x.device.type)
