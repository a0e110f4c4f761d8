"""The model as an algorithm sees it: its present weights, and others kept beside them by value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowfactory import lora
from flowfactory.errors import RunError
from flowfactory.types import Evaluation, Step, Trainable

REFERENCE = "reference"
FULL = "diffusion_pytorch_model.safetensors"


class Policy:
    """Owner of the weights.

    ``parameters`` are the trainable ones by name. ``evaluate`` is one differentiable forward. Other weights are *kept*
    under a name (a copy by value), *blended* towards the present ones, and *used* within a context.
    """

    def __init__(
        self,
        trainable: Trainable,
        evaluate: Callable[[Step], Evaluation],
        device: torch.device,
        precision: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        self.modules = dict(trainable.modules)
        self.adapted: list[str] = []
        self._evaluate = evaluate
        self.device, self._precision = device, precision
        self._lora = trainable.training != "full"
        for name, module in self.modules.items():
            if self._lora:
                found = lora.inject(module, trainable.training.lora, trainable.lora_targets, seed)
                self.adapted += [f"{name}.{layer}" for layer in found]
            else:
                module.requires_grad_(True)
                module.float()  # master weights; the forward is autocast to the precision
            module.eval()  # dropout would make the ratio differ from one
        self._kept: dict[str, dict[str, Tensor]] = {}

    def to_device(self) -> None:
        """Move the weights to the device of the run."""
        for module in self.modules.values():
            module.to(self.device)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return {
            f"{name}.{key}": parameter
            for name, module in self.modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def precision(self) -> AbstractContextManager[object]:
        """The context every forward runs in, sampling and training alike."""
        if self._precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self._precision)

    def evaluate(self, step: Step) -> Evaluation:
        """One forward of the present weights at ``step``, differentiable."""
        with self.precision():
            return self._evaluate(step)

    def keep_reference(self) -> None:
        """Remember the present weights as the reference; with LoRA they are the base, and cost nothing."""
        if not self._lora:
            self.keep(REFERENCE)

    def evaluate_reference(self, step: Step) -> Evaluation:
        """One forward of the reference at ``step``, without gradients.

        Call it before :meth:`evaluate` of the same step: weights are swapped by value, which a graph would not survive.
        """
        with torch.no_grad(), self.reference():
            return self.evaluate(step)

    def reference(self) -> AbstractContextManager[None]:
        """Within it the weights are the reference's."""
        return self._without_adapters() if self._lora else self.using(REFERENCE)

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self.modules.values():
                stack.enter_context(lora.switched_off(module))
            yield

    def keep(self, name: str) -> None:
        """Copy the present weights under ``name``."""
        self._kept[name] = {key: parameter.detach().clone() for key, parameter in self.parameters.items()}

    def blend(self, name: str, decay: float) -> None:
        """Kept ``name`` becomes ``decay`` of itself and the rest of the present weights."""
        kept = self._kept[name]
        present = self.parameters
        torch._foreach_lerp_(list(kept.values()), [present[key].detach() for key in kept], 1 - decay)

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Within it the weights are those kept as ``name``."""
        if name not in self._kept:
            raise RunError(f"no weights are kept as {name!r}; call policy.keep({name!r}) when the run starts")
        present = {key: parameter.detach().clone() for key, parameter in self.parameters.items()}
        self._copy(self._kept[name])
        try:
            yield
        finally:
            self._copy(present)

    @torch.no_grad()
    def _copy(self, weights: Mapping[str, Tensor]) -> None:
        # by value: assigning .data moves nothing under FSDP2, which keeps its own view of the shards
        parameters = self.parameters
        torch._foreach_copy_([parameters[key] for key in weights], list(weights.values()))

    def save(self, folder: Path) -> None:
        """Write the trained weights (as diffusers loads them) and the kept ones."""
        if self._lora:
            lora.save(self.modules, folder)
        else:
            for name, module in self.modules.items():
                (folder / name).mkdir()
                state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
                save_file(state, folder / name / FULL, metadata={"format": "pt"})
                write_config = getattr(module, "save_config", None)  # diffusers reads weights with their config beside them
                if write_config is not None:
                    write_config(folder / name)
        if self._kept:
            kept = {f"{name}/{key}": value.cpu() for name, w in self._kept.items() for key, value in w.items()}
            save_file(kept, folder / "kept.safetensors")

    def load(self, folder: Path) -> None:
        """Read by value what :meth:`save` wrote."""
        if self._lora:
            lora.load(self.modules, folder)
        else:
            for name, module in self.modules.items():
                module.load_state_dict(load_file(folder / name / FULL))
        self._kept = {}
        if (folder / "kept.safetensors").exists():
            for key, value in load_file(folder / "kept.safetensors").items():
                name, _, parameter = key.partition("/")
                self._kept.setdefault(name, {})[parameter] = value.to(self.device)
