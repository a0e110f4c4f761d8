"""Stand-ins for what a run has: checkpoints without weights, a few prompts' conditions, forwards, and CUDA's autocast."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from flowfactory.canvas import Canvas
from flowfactory.distributed.context import Context
from flowfactory.models.building import build_on_meta
from flowfactory.models.checkpoint_files import check_file, read_settings, reading
from flowfactory.models.pretrained import Pretrained
from flowfactory.runs.estimate.storage_counter import StorageCounter
from flowfactory.runs.estimate.weights import tensor_bytes
from flowfactory.types import Conditions, Prompt


class Weightless:
    """Within it checkpoints are opened without their weights: ``opened`` are the modules by their part's name, on "meta".

    ``staying`` are the bytes of the files of those that a run leaves there until it places them.
    """

    def __init__(self) -> None:
        self.opened: dict[str, nn.Module] = {}
        self.staying: dict[str, int] = {}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        whole: dict[str, Any] = {"fetch": Pretrained.fetch, "load": Pretrained.load}

        def load(checkpoint: Pretrained, kind: Any, folder: Path, name: str, dtype: torch.dtype, stays: bool = False) -> Any:
            if not issubclass(kind, nn.Module):
                return whole["load"](checkpoint, kind, folder, name, dtype, stays)
            with reading(f"{name} of {checkpoint.path}"):
                self.opened[name] = module = _without_weights(kind, folder / name, dtype)
                if stays:
                    self.staying[name] = _bytes_in_files(folder / name) or sum(map(tensor_bytes, module.parameters()))
            return self.opened[name]

        for name, stand_in in (("fetch", _fetch_configs), ("load", load)):
            setattr(Pretrained, name, stand_in)
        try:
            yield
        finally:
            for name, method in whole.items():
                setattr(Pretrained, name, method)


def _fetch_configs(checkpoint: Pretrained, names: Collection[str]) -> Path:
    """The folder with everything of the parts ``names`` but weights."""
    if Path(checkpoint.path).is_dir():
        return Path(checkpoint.path)
    from huggingface_hub import snapshot_download

    with reading(checkpoint.path):
        kinds = ("json", "txt", "model", "jinja")
        return Path(snapshot_download(checkpoint.path, allow_patterns=[f"{name}/*.{kind}" for name in names for kind in kinds]))


def _bytes_in_files(folder: Path) -> int:
    """Bytes of the weights in ``folder``, as their index or the files themselves say; 0 where neither is on this machine."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    told = [read_settings(index).get("metadata", {}).get("total_size", 0) for index in indices]
    return int(max(told, default=0)) or sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _without_weights(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """What the config in ``folder`` makes of ``kind``, on "meta"."""
    check_file(folder / "config.json")
    of_diffusers = hasattr(kind, "load_config")
    module = build_on_meta(kind, folder)
    # what from_pretrained of diffusers, or of transformers, does not round to bf16
    kept = "_keep_in_fp32_modules" if of_diffusers else "_keep_in_fp32_modules_strict"
    exact = getattr(module, kept, None) or ()
    for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not any(part in exact for part in key.split(".")):
            tensor.data = tensor.data.to(dtype)
    setattr(module, "_apply", partial(replace_tensors, module))  # noqa: B010
    return module


def replace_tensors(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """What ``to`` and ``float`` do to ``module``; PyTorch's own way cannot do it to fake tensors twice."""
    made: dict[int, nn.Parameter] = {}  # by what was there: tied weights stay tied
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) not in made:
                changed = change(parameter)
                same = changed is parameter
                made[id(parameter)] = parameter if same else nn.Parameter(changed.detach(), parameter.requires_grad)
            if parameter is not None:
                part._parameters[name] = made[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = change(buffer)
    return module


class TracedConditions:
    """The conditions of a few prompts, which stand for those of all: the part of an EncodeCache that drawing needs."""

    def __init__(self, encode: Callable[[Sequence[Prompt], Canvas], Iterable[Mapping[str, Tensor]]]) -> None:
        self._encode = encode
        self._known: dict[Canvas, list[Mapping[str, Tensor]]] = {}

    def prepare_all(self, wanted: Sequence[tuple[Sequence[Prompt], Canvas]], in_training: bool = False) -> int:
        """Encode the prompts ``wanted``, each for its canvas."""
        return sum(self._prepare(prompts, canvas) for prompts, canvas in wanted)

    def _prepare(self, wanted: Sequence[Prompt], canvas: Canvas) -> int:
        different = list(dict.fromkeys((prompt.text, prompt.media) for prompt in wanted))
        first = {(prompt.text, prompt.media): prompt for prompt in wanted}
        self._known[canvas] = list(self._encode([first[key] for key in different], canvas))
        return len(different)

    def conditions(self, wanted: Sequence[Prompt], canvas: Canvas, negative: Sequence[Prompt] | None = None) -> Conditions:
        """One entry a prompt, the same for the same prompt."""
        known = self._known.get(canvas) or next(iter(self._known.values()))
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompt.index for prompt in wanted))}
        entries = tuple(known[places[prompt.index] % len(known)] for prompt in wanted)
        return Conditions(entries, None if negative is None else Conditions((known[-1],) * len(entries)))

    @property
    def each(self) -> float:
        """Bytes of one prompt's, in the mean."""
        entries = [entry for known in self._known.values() for entry in known]
        return sum(tensor_bytes(tensor) for entry in entries for tensor in entry.values()) / max(1, len(entries))


@dataclass(frozen=True)
class OneOfContext(Context):
    """The first of the ranks that share a forward, whose part of the tokens stands for that of each; nothing is exchanged."""

    def swap(self, parts: Tensor) -> Tensor:
        return torch.empty_like(parts.contiguous())

    def collect(self, tensor: Tensor) -> Tensor:
        return torch.stack([torch.empty_like(tensor) for _ in range(self.count)])


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Within it autocast keeps in float32 what it keeps so on CUDA and not on a CPU, which stands in for it here."""
    # replaced, because checkpointed blocks run again where no mode of functions reaches
    whole = {name: getattr(nn.functional, name) for name in ("layer_norm", "rms_norm", "softmax")}

    def exact(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            if torch.is_autocast_enabled("cpu"):
                args = tuple(arg.float() if isinstance(arg, Tensor) else arg for arg in args)
            return function(*args, **kwargs)

        return run

    for name, function in whole.items():
        setattr(nn.functional, name, exact(function))
    try:
        yield
    finally:
        for name, function in whole.items():
            setattr(nn.functional, name, function)


class CachedForwards:
    """Runs each of ``modules`` once for each shape of its inputs where no graph is wanted; later only its bytes pass.

    ``peak``: the most bytes there were until the last of them ended.
    """

    def __init__(self, counter: StorageCounter, fake: FakeTensorMode, modules: Iterable[nn.Module]) -> None:
        self._counter, self._fake = counter, fake
        self._known: dict[object, tuple[Any, float]] = {}
        self.peak = 0.0
        for module in modules:
            module.forward = self._once(module.forward)

    def begin(self) -> None:
        """Look for the peak from here on."""
        self._counter.lap()
        self.peak = 0.0

    def _once(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled():
                return forward(*args, **kwargs)
            leaves = tree_leaves((args, kwargs))
            key = (id(forward), *((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves))
            before = self._counter.lap()
            start = self._counter.live
            if key not in self._known:
                result = forward(*args, **kwargs)
                took = self._counter.lap() - start
                self._known[key] = tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, result), took
            else:
                like, took = self._known[key]
                with self._fake:
                    result = tree_map(
                        lambda leaf: torch.empty(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf, like
                    )
            self.peak = max(self.peak, before, start + took)
            return result

        return run
