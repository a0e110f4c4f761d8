"""The optimizers of a run: AdamW and Lion, with moments in 32 or in 8 bits, whole or over shards of the weights.

bitsandbytes takes no DTensor, and PyTorch is faster with plain tensors, so each rank steps plain views of its own shards. That
is exact, since all of these optimizers are element-wise. In 8 bits 256 neighbouring elements of a shard share a scale; where
shards begin at multiples of 256 elements, those are the elements that share it without sharding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from flowfactory.config.bitsandbytes import BLOCK, bitsandbytes_optimizer
from flowfactory.config.optimizers import OptimizerConfig
from flowfactory.config.schema import TrainingConfig
from flowfactory.distributed.sharding import as_shard, local_shard

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "lion": ("momentum",)}
"""What each method remembers of a parameter's gradients."""


def build(config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
    """The optimizer of ``parameters`` by name, each a plain tensor or this rank's shard."""
    return Optimizer(config, parameters)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of the optimizer step ``step``, counted from 0: a linear warm-up, then the decay that is configured."""
    return config.optimizer.lr * _lr_factor(config, step)


def _lr_factor(config: TrainingConfig, step: int) -> float:
    total = max(1, config.iterations * config.epochs * config.updates - config.warmup)
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / total)
    match config.decay:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))


def in_8_bits(config: OptimizerConfig, shape: Sequence[int]) -> bool:
    """Whether the moments of a parameter of ``shape``, all ranks' shards together, are in 8 bits.

    Those of matrices of 4096 and more elements are; biases and the like weigh nothing beside them, and stay in 32.
    """
    return config.bits == 8 and len(shape) > 1 and math.prod(shape) >= 4096


def state_bytes(config: OptimizerConfig, shape: Sequence[int]) -> int:
    """Bytes of the moments of a parameter of ``shape``, all ranks' shards together."""
    size = math.prod(shape)
    each = size + 4 * math.ceil(size / BLOCK) if in_8_bits(config, shape) else 4 * size
    return each * len(MOMENTS[config.method])


def resumable(config: OptimizerConfig, before: int, now: int, parameters: Mapping[str, Tensor]) -> str | None:
    """Why ``now`` shards cannot go on exactly from the state that ``before`` saved, and what to do; None where they can."""
    shapes = [tuple(parameter.shape) for parameter in parameters.values() if in_8_bits(config, parameter.shape)]

    def exact(shards: int) -> bool:
        return shards == before or all(_aligned(shape, before) and _aligned(shape, shards) for shape in shapes)

    if exact(now):
        return None
    others = " or ".join(str(shards) for shards in range(1, max(before, now) + 1) if exact(shards))
    return (
        f"training.optimizer: the 8-bit state was saved with distributed.shard: {before}, and {now} would divide other blocks "
        f"of {BLOCK} elements; resume with distributed.shard: {others}, or begin a new run with a 32-bit optimizer"
    )


def _aligned(shape: Sequence[int], shards: int) -> bool:
    """Whether each shard of the rows begins at the first element of a block of the whole."""
    rows, width = shape[0], math.prod(shape[1:])
    each = math.ceil(rows / shards)
    return each >= rows or each * width % BLOCK == 0


def _scale_shape(shape: Sequence[int], shards: int) -> tuple[int, int]:
    """The shape of the scales of a parameter, which divides into shards by rows as the parameter does.

    A row is as many blocks as make whole rows of the parameter, so that its shape does not depend on the number of shards.
    Where blocks do not come out even it does, and a row is what a shard has.
    """
    rows, width = shape[0], math.prod(shape[1:])
    if not _aligned(shape, shards):
        return shards, math.ceil(math.ceil(rows / shards) * width / BLOCK)
    together = BLOCK // math.gcd(width, BLOCK)
    return math.ceil(rows / together), together * width // BLOCK


class Optimizer:
    """Owner of the moments of ``parameters``."""

    def __init__(self, config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parts = {name: _ParameterState(parameter) for name, parameter in parameters.items()}
        views: dict[int, list[Tensor]] = {}
        for part in self._parts.values():
            views.setdefault(8 if in_8_bits(config, part.parameter.shape) else 32, []).append(part.view)
        self._inner = [
            _adamw(config, own) if config.name == "adamw" else bitsandbytes_optimizer(config, own, n)
            for n, own in views.items()
        ]
        kept = {view: state for inner in self._inner for view, state in inner.state.items()}
        for part in self._parts.values():
            part.remember(kept[part.view], MOMENTS[config.method])

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One step at the learning rate ``lr`` of the parameters that have a gradient."""
        moving = [part for part in self._parts.values() if part.parameter.grad is not None]
        for part in moving:
            part.take()
        for inner in self._inner:
            for group in inner.param_groups:
                group["lr"] = lr
            inner.step()
        for part in moving:
            part.give()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self._parts.values():
            part.parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """``<parameter>/<moment>`` and ``<parameter>/step``, sharded as the parameters are; complete from the start.

        A moment in 8 bits is its codes, uint8, and ``<moment>_scale``, as the next step reads them: rounded anew from float32
        they would not be the same. Moments share the optimizer's memory; scales and steps are copies.
        """
        return {f"{name}/{key}": value for name, part in self._parts.items() for key, value in part.state().items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state`. KeyError, ValueError: it is another optimizer's, or of other parameters or shards."""
        for name, part in self._parts.items():
            for key, own in part.state().items():
                given = state[f"{name}/{key}"]
                if (given.dtype, given.shape, local_shard(given).shape) != (own.dtype, own.shape, local_shard(own).shape):
                    raise ValueError(f"{name}/{key} is {given.dtype} {[*given.shape]}, not {own.dtype} {[*own.shape]}")
                part.load(key, local_shard(given))


class _ParameterState:
    """What this rank has of a parameter: a plain view, and what the inner optimizer keeps of it, in ``_kept``."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.view = local_shard(parameter.detach()).contiguous()
        self._kept: dict[str, Any] = {}
        self._moments: dict[str, Tensor] = {}
        self._scales: dict[str, Tensor] = {}

    def remember(self, kept: dict[str, Any], names: Sequence[str]) -> None:
        """Know the moments ``names`` among what the inner optimizer keeps."""
        self._kept = kept
        for number, name in enumerate(names, 1):
            self._moments[name] = kept[name] if name in kept else kept[f"state{number}"]
            if f"absmax{number}" in kept:
                self._scales[f"{name}_scale"] = kept[f"absmax{number}"]

    def take(self) -> None:
        """Let the view have the parameter's present values and gradient."""
        assert self.parameter.grad is not None
        # anew each time: fully_shard may move a shard, and bitsandbytes steps a copy of what is not contiguous
        self.view.data = local_shard(self.parameter.detach()).contiguous()
        if self.view.numel():
            self.view.grad = local_shard(self.parameter.grad)
        else:  # kernels want no empty shard, yet all ranks count alike
            self._kept["step"] += 1

    def give(self) -> None:
        """Let the parameter have the view's values."""
        own = local_shard(self.parameter.detach())
        if not own.is_contiguous():
            own.copy_(self.view)
        self.view.grad = None

    def state(self) -> dict[str, Tensor]:
        """By name; see :meth:`Optimizer.state`."""
        shape, shards = self.parameter.shape, _shards(self.parameter)
        found = {"step": torch.tensor(float(self._kept["step"]))}
        found |= {name: as_shard(moment, self.parameter, shape) for name, moment in self._moments.items()}
        for name, scale in self._scales.items():
            whole = _scale_shape(shape, shards)
            own = _scale_shape(self.view.shape, 1) if _aligned(shape, shards) else (1, whole[1])
            padded = nn.functional.pad(scale, (0, math.prod(own) - len(scale))).view(own)
            found[name] = as_shard(padded, self.parameter, whole)
        return found

    def load(self, key: str, value: Tensor) -> None:
        """Take back ``key`` of :meth:`state`."""
        if key in self._moments:
            self._moments[key].copy_(value)
        elif key in self._scales:
            self._scales[key].copy_(value.flatten()[: len(self._scales[key])])
        else:  # PyTorch counts in a tensor, bitsandbytes in a number
            step = self._kept["step"]
            self._kept["step"] = value.to(step, copy=True) if isinstance(step, Tensor) else int(value)


def _shards(parameter: Tensor) -> int:
    if not isinstance(parameter, DTensor):
        return 1
    return math.prod(parameter.device_mesh.size(i) for i, of in enumerate(parameter.placements) if of.is_shard())


def _adamw(config: OptimizerConfig, views: Sequence[Tensor]) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(views, **config.model_dump(exclude={"name"}), fused=True)
    for view in views:  # what its first step would make, before there is a gradient
        moments = {name: torch.zeros_like(view) for name in MOMENTS["adamw"]}
        optimizer.state[view] = {"step": torch.zeros((), device=view.device), **moments}
    return optimizer
