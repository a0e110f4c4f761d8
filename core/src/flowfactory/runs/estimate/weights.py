"""Bytes of weights: trained, frozen, quantised, sharded, and those of rewards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flowfactory.policy import blocks
from flowfactory.policy.policy import Policy
from flowfactory.runs.checkpoints.roles import role_of
from flowfactory.runs.checkpoints.staging import packs
from flowfactory.runs.estimate.result import Part
from flowfactory.training import optimizers
from flowfactory.types import DTYPES, Trainable

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of ``tensor``."""
    return tensor.numel() * tensor.element_size()


def _storage_of_quantized(tensor: Tensor, packed: str | None) -> float:
    """Bytes that sharding divides."""
    return tensor.numel() * {"nf4": 0.5, "int8": 1.0}[packed] if packed else tensor_bytes(tensor)


@dataclass(frozen=True)
class Weights:
    """Bytes of the transformers, and of what trains in them, before they are divided over ranks.

    files: of what stays in files until it is placed, once a machine; block: the most of it that a rank has as a copy meanwhile.
    read: of all else, before any is quantised; early: what a rank has of all weights before they are divided. stored: as they
    rest; alone: what of that no sharding divides. optimizer: its state. largest: the largest tensor that trains. gathered: what
    a rank has whole while a forward goes through sharded weights: a block that is used and one on its way, and what is in no
    block. reduced: the gradients of a block, as computed and as they are added up. whole: everything, as sampling has it under
    ``gather_to_sample``. unpacked: the largest of the quantised layers, as it computes.
    """

    files: int
    block: int
    read: int
    early: float
    stored: float
    alone: float
    trained: int
    optimizer: int
    largest: int
    gathered: float
    reduced: float
    whole: float
    unpacked: int

    @staticmethod
    def of(
        trainable: Trainable, policy: Policy, packed: frozenset[int], config: RunConfig, staying: Mapping[str, int]
    ) -> Weights:
        """Those of ``policy``, of whose weights ``packed``, by their id, will be stored as ``model.quantize`` says.

        staying: the bytes of the files that the modules of these names stay in.
        """
        compute = DTYPES[config.training.precision]
        kind = config.model.quantize

        def stored(parameter: Tensor) -> float:
            return _storage_of_quantized(parameter, kind if id(parameter) in packed else None)

        def gathered(parameter: Tensor) -> float:
            rounded = parameter.requires_grad and not policy.lora and compute != torch.float32
            cast_down = rounded and parameter.is_floating_point() and id(parameter) not in packed
            return parameter.numel() * compute.itemsize if cast_down else stored(parameter)

        named = {**policy.modules, **trainable.frozen}
        modules = [*named.values()]
        everything = [parameter for module in modules for parameter in module.parameters()]
        trained = list(policy.parameters.values())
        late = {id(p) for name in staying if name in named for key, p in named[name].named_parameters() if "lora_" not in key}
        within = [[*block.parameters()] for module in modules for block in blocks.find_blocks(module, trainable.blocks)]
        inside = {id(parameter) for block in within for parameter in block}
        outside = [sum(gathered(p) for p in module.parameters() if id(p) not in inside) for module in modules]
        gradients = [sum(p.numel() for p in block if p.requires_grad) for block in within]

        def scales(parameter: Tensor) -> float:
            blocks_of_64 = parameter.numel() / 64  # each with a scale of 8 bits, and 256 of those with one of 32
            return blocks_of_64 * (1 + 4 / 256) if kind == "nf4" else len(parameter) * compute.itemsize

        def copied(parameters: Iterable[Tensor]) -> int:
            return sum(tensor_bytes(p) for p in parameters if id(p) in late - packed)

        small = [parameter for parameter in everything if id(parameter) in packed]
        computed = compute.itemsize * (2 if kind == "int8" else 1)  # the scaled beside the unscaled
        rest = [parameter for parameter in everything if id(parameter) not in inside]
        return Weights(
            files=sum(size for name, size in staying.items() if name in named),
            block=max(map(copied, [*within, rest])),
            read=sum(tensor_bytes(parameter) for parameter in everything if id(parameter) not in late),
            early=sum(stored(p) for p in everything if id(p) not in late - packed) + sum(map(scales, small)),
            stored=sum(map(stored, everything)),
            alone=sum(map(scales, small)),
            trained=sum(map(tensor_bytes, trained)),
            optimizer=sum(optimizers.state_bytes(config.training.optimizer, parameter.shape) for parameter in trained),
            largest=max(map(tensor_bytes, trained), default=0),
            gathered=max(outside, default=0) + 2 * max((sum(map(gathered, block)) for block in within), default=0),
            reduced=max(gradients, default=0) * (compute.itemsize + 4),
            whole=sum(map(gathered, everything)),
            unpacked=max((parameter.numel() * computed for parameter in small), default=0),
        )


@dataclass(frozen=True)
class DrawingCopy:
    """Bytes of the weights that ``sampling.weights_as`` draws with beside the others, and the most that one is unpacked to."""

    stored: float = 0
    unpacked: float = 0

    @staticmethod
    def of(trainable: Trainable, config: RunConfig) -> DrawingCopy:
        """Of the linear layers that a policy would copy."""
        kind = config.sampling.weights_as
        if kind is None:
            return DrawingCopy()
        modules = (*trainable.modules.values(), *trainable.frozen.values())
        layers = [layer for module in modules for layer in _packable(module, trainable.blocks)]
        compute = DTYPES[config.training.precision].itemsize
        weights = {"nf4": 0.5 + (1 + 4 / 256) / 64, "int8": 1.0, "fp8": 1.0}[kind]
        scale = {"nf4": 0, "int8": compute, "fp8": 4}[kind]
        once = {"nf4": compute, "int8": 2 * compute, "fp8": 4 + compute}[kind]  # the scaled beside the unscaled
        return DrawingCopy(
            stored=sum(weights * layer.weight.numel() + (scale + compute) * layer.out_features for layer in layers),
            unpacked=max((once * layer.weight.numel() for layer in layers), default=0),
        )


def _packable(module: nn.Module, names: Sequence[str]) -> list[nn.Linear]:
    """The linear layers in the blocks that can be stored in few bits."""
    layers = [layer for block in blocks.find_blocks(module, names) for layer in block.modules()]
    return [layer for layer in layers if type(layer) is nn.Linear and layer.in_features % 8 == 0]


def packed_bytes(policy: Policy, config: RunConfig, shard: int) -> int:
    """The most that a checkpoint copies at once of small tensors, each divided by ``shard``."""
    optimizer = config.training.optimizer
    sizes = {name: (tensor.numel(), tensor.dtype) for name, tensor in {**policy.state(), **policy.frozen_state()}.items()}
    for key, parameter in policy.parameters.items():
        dtype = torch.uint8 if optimizers.in_8_bits(optimizer, parameter.shape) else torch.float32
        sizes |= {f"optimizer/{key}/{name}": (parameter.numel(), dtype) for name in optimizers.MOMENTS[optimizer.method]}
    roles: dict[str, list[Tensor]] = {}
    for name, (count, dtype) in sorted(sizes.items(), key=lambda item: (-item[1][1].itemsize, item[0])):
        own = torch.empty(math.ceil(count / shard), dtype=dtype, device="meta")
        roles.setdefault(role_of(name), []).append(own)
    found = [pack for tensors in roles.values() for pack in packs(tensors)]
    return max((sum(map(tensor_bytes, pack)) for pack in found if len(pack) > 1), default=0)


def quantized_ids(trainable: Trainable, kind: str | None) -> frozenset[int]:
    """The ids of the weights that ``quantize_blocks`` would pack."""
    modules = (*trainable.modules.values(), *trainable.frozen.values()) if kind else ()
    return frozenset(id(layer.weight) for module in modules for layer in _packable(module, trainable.blocks))


def reward_weight_bytes(config: RunConfig, cuda: bool) -> tuple[Part, tuple[str, ...]]:
    """What the weights of all rewards take of the rank that computes them, and the labels of those that do not tell."""
    told: dict[tuple[str, bool], int] = {}
    unknown = []
    for label, reward in (*config.rewards.items(), *config.evaluation.rewards.items()):
        weights, workers = reward.weight_bytes(), getattr(reward, "workers", 0)
        if weights is None:
            unknown.append(label)
            continue
        aside = bool(workers) or getattr(reward, "device", "auto") == "cpu"
        told |= {(name, cuda and aside): size * max(1, workers) for name, size in weights.items()}
    device, host = (sum(size for (_, there), size in told.items() if there is on_host) for on_host in (False, True))
    return Part(device, host), tuple(dict.fromkeys(unknown))


def part_on(device: bool, size: float) -> Part:
    """``size`` bytes on the device, or in host memory."""
    return Part(round(size)) if device else Part(0, round(size))


def module_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(map(tensor_bytes, (*module.parameters(), *module.buffers())))
