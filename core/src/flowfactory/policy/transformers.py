"""A policy's transformers: adapted or made ready to train, brought to where a run has them, compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flowfactory import stored_weights
from flowfactory.distributed.ranks import Ranks
from flowfactory.lora_targets import adaptable_layers
from flowfactory.policy import blocks, lora
from flowfactory.policy.drawing_layers import DrawingLayers
from flowfactory.policy.float32_islands import is_island, keep_in_float32
from flowfactory.policy.merging import Merging
from flowfactory.policy.parts import parts_of
from flowfactory.policy.starting_adapters import read_starting_adapters
from flowfactory.policy.without_autocast import compute_in
from flowfactory.types import Trainable

if TYPE_CHECKING:
    from flowfactory.config.schema import TrainingConfig


class Transformers:
    """Owner of the modules of a policy: those that train, and those that sampling needs beside them.

    ``adapted`` are the names of the layers that adapters went on, and ``layers`` of each module all that they can go on, by
    the names that these have without. ``drawing_layers``: see there. ``start``: the adapters that training starts from, None
    where these are new and go on the model as it is.
    """

    def __init__(
        self,
        trainable: Trainable,
        precision: torch.dtype,
        seed: int,
        quantize: str | None,
        trains: bool,
        device: torch.device,
        merging: Merging,
    ) -> None:
        self.modules, self.frozen = dict(trainable.modules), dict(trainable.frozen)
        self.lora = trainable.training != "full"
        self.adapted: list[str] = []
        self._device, self._precision, self._trains = device, precision, trains
        self._blocks, self._unread = trainable.blocks, trainable.unread
        self._named: dict[str, nn.Parameter] = {}
        self.convert_adapters = trainable.convert_adapters
        self.start = read_starting_adapters(trainable)
        if self.start and self.start.base:
            self.start.fuse(self.modules)
        self._compiled: list[Callable[[], None]] = []  # what undoes it, where nobody asked for it
        drawing = [*((module, not self.lora) for module in self.modules.values()), *((m, False) for m in self.frozen.values())]
        self.drawing_layers = DrawingLayers(drawing, trainable.blocks, precision, device)
        if quantize:
            from flowfactory.policy import quantization  # whose layers are PyTorch's, which checking a config does without

            for module in self.all.values():
                quantization.quantize_blocks(module, trainable.blocks, quantize, precision, device)
        # before adapters go on some of them
        self.layers = {name: adaptable_layers(module) for name, module in self.all.items()}
        for name, module in self.modules.items():
            if self.lora:
                kept = self.start if self.start and not self.start.base else None
                config = kept.adapters(name, module) if kept else trainable.training.lora
                found = lora.add_adapters(module, config, trainable.lora_targets, seed, merging)
                if kept:
                    kept.fill(name, module)
                self.adapted += [full for layer in found if not (full := f"{name}.{layer}").startswith(trainable.unread)]
            else:
                module.requires_grad_(True)
                if trains:
                    module.float()  # master weights; the forward is autocast to the precision
                else:
                    blocks.round_layers(module, precision)
            for key, parameter in module.named_parameters():
                if f"{name}.{key}".startswith(trainable.unread):
                    parameter.requires_grad_(False)
            module.eval()  # dropout would make the ratio differ from one
        for module in self.frozen.values():
            module.requires_grad_(False).eval()

    @property
    def starts_bare(self) -> bool:
        """Whether the weights that training starts from are those without adapters."""
        return self.lora and (self.start is None or self.start.base)

    @property
    def all(self) -> dict[str, nn.Module]:
        """Those that train, then the others, by name."""
        return {**self.modules, **self.frozen}

    def distribute(self, ranks: Ranks, training: TrainingConfig) -> None:
        """Bring the weights to where the run has them: on its device, and divided where ``ranks`` share them.

        UserError: the model has no blocks for what is asked of them, or cannot be divided.
        """
        for module in self.modules.values():
            blocks.checkpoint_blocks(module, self._blocks, training.activation_checkpointing)
        for name, module in self.all.items():
            if self._precision != torch.float32:
                keep_in_float32(module)
                if not training.autocast:
                    compute_in(module, self._precision)
            if ranks.context is not None:
                from flowfactory.policy.context_parallel import divide_tokens  # whose hooks are diffusers'

                divide_tokens(module, ranks.context)
            if training.compile is True:
                blocks.compile_blocks(module, self._blocks)
            elif training.compile == "auto" and self._compiles_by_default(module, ranks):
                self._compiled.append(blocks.compile_blocks(module, self._blocks, lenient=True))
            found = blocks.find_blocks(module, self._blocks)
            if ranks.mesh is None:
                # in host memory they stay in their files; elsewhere there is never more of a copy here than a block
                for part in (module,) if self._device.type == "cpu" else (*found, module):
                    stored_weights.place(part)
                    part.to(self._device)
            else:
                # what is frozen is stored in the precision already, and adapters are small
                rounded = None if self.lora or name in self.frozen or self._precision == torch.float32 else self._precision
                ranks.shard_module(module, found, rounded, partial(is_island, module))
        self._named = {}  # shards have taken the place of the parameters

    def _compiles_by_default(self, module: nn.Module, ranks: Ranks) -> bool:
        if ranks.context is not None:  # whose hooks part what the blocks are given
            return False
        from torch.utils._triton import has_triton

        return blocks.compiles_by_default(module, self._blocks, self._device.type, self._trains, has_triton())

    def stop_compiling(self) -> bool:
        """Run the blocks as they are from now on; whether they were compiled without having been asked for."""
        undone = bool(self._compiled)
        for undo in self._compiled:
            undo()
        self._compiled = []
        return undone

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        # found once: to go through the modules of a large transformer takes as long as a short forward
        if not self._named:
            self._named = {
                f"{name}.{key}": parameter
                for name, module in self.modules.items()
                for key, parameter in module.named_parameters()
            }
        return {key: parameter for key, parameter in self._named.items() if parameter.requires_grad}

    def parts(self) -> dict[str, str]:
        """See :func:`parts_of`; of the trainable parameters."""
        trained = self.parameters
        return {key: part for key, part in parts_of(self.modules, self._blocks).items() if key in trained}

    def frozen_state(self) -> dict[str, Tensor]:
        """``frozen/<name>``: what files of the trained modules have beside :meth:`state`, sharded as it is.

        That is, buffers and weights that do not train of modules that train whole, and adapters that do not train.
        """
        found = {f"frozen/{key}": value for key, value in (self.start.frozen_state() if self.start else {}).items()}
        if self.lora and not self._unread:
            return found
        trained = self.parameters
        for name, module in self.modules.items():
            inside: dict[str, Tensor] = dict(module.named_parameters()) if self.lora else module.state_dict()
            wanted = (key for key in inside if f"{name}.{key}" not in trained and (not self.lora or lora.exported_name(key)))
            found |= {f"frozen/{name}.{key}": inside[key].detach() for key in wanted}
        return found

    @property
    def adapters(self) -> dict[str, lora.Adapters | None]:
        """What was put on each of the trained modules; None: it trains whole."""
        return {name: lora.adapters_of(module) if self.lora else None for name, module in self.modules.items()}
