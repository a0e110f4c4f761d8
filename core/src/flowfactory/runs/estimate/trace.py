"""What a run takes of each rank's memory, from a trace of its own code on tensors that have shapes and no bytes.

Modules are built from the configs of the checkpoint. The run's own sampler, policy and algorithm then work on fake tensors,
and every storage that comes to be is counted until it is gone: samples, activations, copies of weights. What one process cannot
see is reckoned: division over ranks, the optimizer's state, weights in fewer bits.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from flowfactory.data import prompts
from flowfactory.distributed.ranks import ALONE, sizes
from flowfactory.errors import UserError
from flowfactory.models.pretrained import Pretrained
from flowfactory.policy import blocks
from flowfactory.policy.policy import Policy
from flowfactory.training import optimizers
from flowfactory.training.assembly import Assembly
from flowfactory.training.evaluation import EVALUATION, evaluate
from flowfactory.training.iteration import SAMPLING, Run, losses, plan_of, read_prompts
from flowfactory.training.preflight import gradients_flow
from flowfactory.training.rollouts import Pool
from flowfactory.training.sampler import Sampler
from flowfactory.types import DTYPES, Conditions, Experience, Prompt, Runtime, Trainable, Trajectory

if TYPE_CHECKING:
    from rich.table import Table

    from flowfactory.canvas import Canvas
    from flowfactory.config.schema import RunConfig
    from flowfactory.data.encode_cache import ConditionCache

GIB = 2**30
RESERVE = GIB
"""Bytes of a CUDA card that no tensor gets: its context, the workspaces of libraries, gaps. Reckoned, not measured."""
ENCODED = 32  # prompts that are traced; the others are taken to be like them
LOSSES = 2  # of an update that are traced: at the second, the gradients of the first are there
aten = torch.ops.aten


@dataclass(frozen=True)
class Part:
    """Bytes on the device, and in host memory where that is another."""

    device: int = 0
    host: int = 0


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank, that with the most.

    parts: what holds them, by name. phases: the most that the device holds at once while a run reads weights, encodes prompts,
    samples, decodes, evaluates, learns and saves. host: the most in host memory. Without ``cuda`` everything is the device's.
    unknown: the labels of rewards that do not tell what they weigh.
    """

    parts: Mapping[str, Part]
    phases: Mapping[str, int]
    host: int
    cuda: bool
    ranks: int
    unknown: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """The most bytes of tensors that the device ever holds."""
        return max(self.phases.values())

    @property
    def needed(self) -> int:
        """Bytes that a card must have."""
        return self.peak + (RESERVE if self.cuda else 0)


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that come to be within it, until they are gone.

    Operations on fake tensors stay fake, those on real ones real, and noise is fake. Any number that is asked of a fake tensor
    is 1. Gradients, and copies of the weights that train, count ``share`` of their bytes: they are as divided as the weights.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.share = 1.0
        self._fake = fake
        self._known: dict[int, weakref.ref[Any]] = {}
        self._bytes: dict[int, float] = {}
        self._weights: set[int] = set()
        self._live = self._peak = 0.0

    @property
    def live(self) -> float:
        """Bytes now."""
        return self._live

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True  # being wrapped for it would cost a fifth of the time

    def begin(self) -> float:
        """Bytes now, from where on the next :meth:`lap` is."""
        self._peak = self._live
        return self._live

    def lap(self) -> float:
        """The most bytes there were since this was last asked."""
        peak, self._peak = self._peak, self._live
        return peak

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """``parameters`` are the weights that train."""
        for parameter in parameters:
            self._note(parameter, 0)
            self._weights.add(parameter.untyped_storage()._cdata)
            parameter.register_post_accumulate_grad_hook(self._accumulated)  # type: ignore[no-untyped-call]

    def _accumulated(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        self._count(storage._cdata, self.share * storage.nbytes())

    def _count(self, key: int, size: float) -> None:
        self._live += size - self._bytes.get(key, 0)
        self._bytes[key] = size
        self._peak = max(self._peak, self._live)

    def _note(self, tensor: Tensor, share: float) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return

        def gone(_: object) -> None:
            del self._known[key]
            self._live -= self._bytes.pop(key)

        self._known[key] = weakref.ref(storage, gone)
        self._count(key, share * storage.nbytes())

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.prim.device.default:  # of three operations one
            return args[0].fake_device if isinstance(args[0], FakeTensor) else function(*args)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in given:
            self._note(tensor, 0)  # what was there before is counted by others
        result = self._run(function, given, args, kwargs or {})
        copies = function in (aten.clone.default, aten._to_copy.default) and self._is_weight(given[0])
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                copy = copies and tensor.dtype == given[0].dtype
                weight = (tensor.is_meta and not isinstance(tensor, FakeTensor)) or (given and given[0].is_meta)
                self._note(tensor, 0 if weight else self.share if copy else 1)
        return result

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._weights

    def _run(self, function: Any, given: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        fakes = any(isinstance(tensor, FakeTensor) for tensor in given)
        if fakes and function is aten._local_scalar_dense.default:
            return {torch.bool: True, torch.int64: 1, torch.int32: 1}.get(given[0].dtype, 1.0)
        if fakes and function is aten.equal.default:
            return True
        if fakes and function is aten.index.Tensor:  # a mask whose numbers are known says how many there are
            places = [_places(index) for index in args[1]]
            args = (args[0], [place for found in places for place in found])
        arrives = function is aten._to_copy.default and given[0].is_meta and kwargs.get("device") is not None
        if arrives:
            with self._fake:
                return torch.empty(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype)
        if fakes and any(tensor.requires_grad and not isinstance(tensor, FakeTensor) for tensor in given):
            # real ones that fake ones were written into
            args, kwargs = tree_map(lambda leaf: _emptied(leaf, self._fake) if _in_graph(leaf) else leaf, (args, kwargs))
        noise = function in (aten.randn.default, aten.randn.generator)
        with self._fake if noise else nullcontext():
            return function(*args, **kwargs)


def _places(index: Tensor | None) -> Sequence[Tensor | None]:
    if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return [index]
    return index.nonzero(as_tuple=True)


def _in_graph(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _emptied(tensor: Tensor, fake: FakeTensorMode) -> Tensor:
    if isinstance(tensor, FakeTensor):
        return tensor
    with fake:
        return torch.empty(tensor.shape, dtype=tensor.dtype)


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


class Weightless:
    """Within it checkpoints are opened without their weights: ``opened`` are the modules by their part's name, on "meta"."""

    def __init__(self) -> None:
        self.opened: dict[str, nn.Module] = {}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        whole = Pretrained.open

        def open(checkpoint: Pretrained, names: Iterable[str], dtypes: Mapping[str, torch.dtype], **given: Any) -> Any:
            return self._pipeline(checkpoint, set(names), dtypes, given)

        setattr(Pretrained, "open", open)  # noqa: B010
        try:
            yield
        finally:
            setattr(Pretrained, "open", whole)  # noqa: B010

    def _pipeline(self, checkpoint: Pretrained, names: set[str], dtypes: Mapping[str, torch.dtype], given: Any) -> Any:
        settings = {key: value for key, value in checkpoint.settings.items() if not key.startswith("_")}
        parts = dict.fromkeys(checkpoint.parts) | {key: value for key, value in settings.items() if not isinstance(value, list)}
        for name, there in checkpoint.parts.items():
            if there and name in names and name not in given:
                parts[name] = self._part(checkpoint, name, dtypes.get(name, dtypes["default"]))
        return getattr(import_module("diffusers"), checkpoint.settings["_class_name"])(**(parts | given))

    def _part(self, checkpoint: Pretrained, name: str, dtype: torch.dtype) -> Any:
        library, kind = checkpoint.settings[name]
        made = getattr(import_module(library), kind)
        try:
            if not issubclass(made, nn.Module):
                return made.from_pretrained(checkpoint.path, subfolder=name)
            if hasattr(made, "load_config"):
                config = made.load_config(checkpoint.path, subfolder=name)
                build: Callable[[Any], nn.Module] = made.from_config
            else:
                config, build = made.config_class.from_pretrained(checkpoint.path, subfolder=name), made
        except (OSError, ImportError) as error:
            raise UserError(f"model.path {checkpoint.path}: {' '.join(str(error).split())}") from error
        with torch.device("meta"):
            module = build(config)
        # what from_pretrained of diffusers, or of transformers, does not round to bf16
        kept = "_keep_in_fp32_modules" if hasattr(made, "load_config") else "_keep_in_fp32_modules_strict"
        exact = getattr(module, kept, None) or ()
        for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point() and not any(part in exact for part in key.split(".")):
                tensor.data = tensor.data.to(dtype)
        setattr(module, "_apply", partial(_replaced, module))  # noqa: B010
        self.opened[name] = module
        return module


def _replaced(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
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


class Known:
    """The conditions of a few prompts, which stand for those of all: the part of a ConditionCache that drawing needs."""

    def __init__(self, encode: Callable[[Sequence[Prompt], Canvas], Iterable[Mapping[str, Tensor]]]) -> None:
        self._encode = encode
        self._known: dict[Canvas, list[Mapping[str, Tensor]]] = {}

    def prepare(self, wanted: Sequence[Prompt], canvas: Canvas) -> int:
        """Encode ``wanted`` for ``canvas``."""
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
        return sum(_size(tensor) for entry in entries for tensor in entry.values()) / max(1, len(entries))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _stored(tensor: Tensor, packed: str | None) -> float:
    """Bytes that sharding divides."""
    return tensor.numel() * {"nf4": 0.5, "int8": 1.0}[packed] if packed else _size(tensor)


@dataclass(frozen=True)
class Weights:
    """Bytes of the transformers, and of what trains in them, before they are divided over ranks.

    read: before any is stored in fewer bits; stored: as they rest; alone: what of that no sharding divides. optimizer: its
    state. largest: the largest tensor that trains. gathered: what a rank has whole while a forward goes through sharded
    weights: a block that is used and one on its way, and what is in no block. reduced: the gradients of a block, as computed
    and as they are added up. whole: everything, as sampling has it under ``gather_to_sample``. unpacked: the largest of the
    layers that are stored in fewer bits, as it computes.
    """

    read: int
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
    def of(trainable: Trainable, policy: Policy, packed: frozenset[int], config: RunConfig) -> Weights:
        """Those of ``policy``, of whose weights ``packed``, by their id, will be stored as ``model.quantize`` says."""
        compute = DTYPES[config.training.precision]
        kind = config.model.quantize

        def stored(parameter: Tensor) -> float:
            return _stored(parameter, kind if id(parameter) in packed else None)

        def gathered(parameter: Tensor) -> float:
            cast_down = parameter.is_floating_point() and id(parameter) not in packed and compute != torch.float32
            return parameter.numel() * compute.itemsize if cast_down else stored(parameter)

        modules = [*policy.modules.values(), *trainable.frozen.values()]
        everything = [parameter for module in modules for parameter in module.parameters()]
        trained = list(policy.parameters.values())
        within = [[*block.parameters()] for module in modules for block in blocks.find(module, trainable.blocks)]
        inside = {id(parameter) for block in within for parameter in block}
        outside = [sum(gathered(p) for p in module.parameters() if id(p) not in inside) for module in modules]
        gradients = [sum(p.numel() for p in block if p.requires_grad) for block in within]

        def scales(parameter: Tensor) -> float:
            blocks_of_64 = parameter.numel() / 64  # each with a scale of 8 bits, and 256 of those with one of 32
            return blocks_of_64 * (1 + 4 / 256) if kind == "nf4" else len(parameter) * compute.itemsize

        small = [parameter for parameter in everything if id(parameter) in packed]
        computed = compute.itemsize * (2 if kind == "int8" else 1)  # the scaled beside the unscaled
        return Weights(
            read=sum(map(_size, everything)),
            stored=sum(map(stored, everything)),
            alone=sum(map(scales, small)),
            trained=sum(map(_size, trained)),
            optimizer=sum(optimizers.state_bytes(config.training.optimizer, parameter.shape) for parameter in trained),
            largest=max(map(_size, trained), default=0),
            gathered=max(outside, default=0) + 2 * max((sum(map(gathered, block)) for block in within), default=0),
            reduced=max(gradients, default=0) * (compute.itemsize + 4),
            whole=sum(map(gathered, everything)),
            unpacked=max((parameter.numel() * computed for parameter in small), default=0),
        )


def _packed(trainable: Trainable, kind: str | None) -> frozenset[int]:
    """The ids of the weights that ``blocks.quantise`` would pack."""
    modules = (*trainable.modules.values(), *trainable.frozen.values()) if kind else ()
    layers = [layer for module in modules for block in blocks.find(module, trainable.blocks) for layer in block.modules()]
    return frozenset(id(layer.weight) for layer in layers if type(layer) is nn.Linear and layer.in_features % 8 == 0)


class Forwards:
    """Runs each of ``modules`` once for each shape of its inputs where no graph is wanted; later only its bytes pass.

    ``peak``: the most bytes there were until the last of them ended.
    """

    def __init__(self, counter: Counter, fake: FakeTensorMode, modules: Iterable[nn.Module]) -> None:
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


@dataclass(frozen=True)
class Drawing:
    """Bytes of a rank's drawing: the most while forwards run, the most while media are decoded and judged, and what rests."""

    drawn: float
    judged: float
    rest: float


def estimate(config: RunConfig, ranks: int = 1, cuda: bool = False) -> Estimate:
    """What a run of ``config`` on ``ranks`` ranks takes of each, on CUDA or on a CPU. Reads no weights.

    UserError: the config of a part is not to be had, or the ranks cannot be divided as the config says.
    """
    _, shard = sizes(config.distributed, ranks)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    counter, opened = Counter(fake), Weightless()
    with opened(), counter, cuda_autocast() if cuda else nullcontext():
        return Trace(config, ranks, shard, cuda, counter, fake, opened).estimate()


class Trace:
    """A run on fake tensors, of which one rank's share is looked at."""

    def __init__(
        self, config: RunConfig, ranks: int, shard: int, cuda: bool, counter: Counter, fake: FakeTensorMode, opened: Weightless
    ) -> None:
        self._config, self._ranks, self._shard, self._cuda = config, ranks, shard, cuda
        self._counter = counter
        cpu, precision = torch.device("cpu"), DTYPES[config.training.precision]
        assembly = Assembly(config, trackers=False)
        train, heldout = read_prompts(config)
        trainable = assembly.hooks.load(Runtime(cpu, precision))
        packed = _packed(trainable, config.model.quantize)
        with torch.device("meta"):  # adapters too are to have no bytes
            policy = Policy(trainable, assembly.hooks.log_prob, cpu, precision, config.seed)
        self._weights = Weights.of(trainable, policy, packed, config)
        transformers = {*map(id, trainable.modules.values()), *map(id, trainable.frozen.values())}
        self._vae = sum(_bytes(module) for module in opened.opened.values() if id(module) not in transformers)
        there = set(opened.opened)
        self._known = Known(assembly.hooks.encode)
        sampler = Sampler(assembly.hooks, policy, cast("ConditionCache", self._known), trainable, config.prompts.negative)
        start = counter.begin()
        first = [(prompt, config.sampling.canvas) for prompt in train[:ENCODED]]
        sampler.prepare([*first, *((prompt, config.evaluation.canvas(config.sampling)) for prompt in heldout[:ENCODED])])
        self._encoding = counter.lap() - start
        self._encoders = sum(_bytes(module) for name, module in opened.opened.items() if name not in there)
        if shard > 1 and precision != torch.float32:  # as fully_shard gives them to the forward
            for module in policy.modules.values():
                module.to(precision)
        policy.settle(ALONE, config.training.model_copy(update={"compile": False}))
        for module in (*trainable.modules.values(), *trainable.frozen.values()):
            _replaced(module, lambda tensor: _emptied(tensor, fake))  # what a model brings with its numbers
        trained = sum(map(_size, policy.parameters.values()))
        off_device = cuda and config.distributed.offload
        counter.share = 0 if off_device else self._weights.trained / max(1, trained) / shard
        counter.watch(policy.parameters.values())
        for name, decay in ((SAMPLING, config.sampling.average), (EVALUATION, config.evaluation.average)):
            if decay is not None:
                policy.average(name, decay)
        self._run = Run(config, assembly, policy, sampler, cast(Any, None), train, heldout)  # nothing here steps
        assembly.hooks.run_started(self._run.info, policy)
        self._kept = len({key.split("/")[1] for key in policy.state() if key.startswith("kept/")}) * self._weights.trained
        policy.changed()  # from here on kept weights are others
        self._forwards = Forwards(counter, fake, (*trainable.modules.values(), *trainable.frozen.values()))
        self._guided = trainable.guided

    def estimate(self) -> Estimate:
        """The bytes of the rank with the most."""
        config, weights, cuda = self._config, self._weights, self._cuda
        chosen = config.distributed
        drawing = self._draw()
        evaluating = self._evaluate()
        activations = self._learn()
        optimizer = config.training.optimizer

        own = weights.stored / self._shard + weights.alone
        gradients = weights.trained / self._shard
        moments = weights.optimizer / self._shard
        kept = self._kept / self._shard
        divided = self._shard > 1 or chosen.offload
        copy = gradients + kept + moments  # what a checkpoint copies of what trains
        prompts_each = self._known.each
        texts = (len(self._run.train) + len(self._run.heldout) + self._guided) * prompts_each
        at_once = (min(len(self._run.train), config.sampling.groups) + self._guided) * prompts_each

        on_host = {
            "weights": chosen.offload,
            "gradients": chosen.offload,
            "optimizer": chosen.offload or optimizer.paged,
            "references and averages": config.training.kept_on == "host" or chosen.offload,
            "samples": config.sampling.keep_on == "host",
        }
        resting = {
            "weights": own,
            "gradients": gradients,
            "optimizer": moments,
            "references and averages": kept,
            "samples": drawing.rest,
        }
        parts = {name: _on(not (cuda and on_host[name]), size) for name, size in resting.items()}
        parts["conditions"] = Part(round(at_once), round(texts)) if cuda else Part(round(texts))
        encodes_here, decodes_here = (
            not cuda or getattr(config.model, key, "device") == "device" for key in ("encoders_on", "decoder_on")
        )
        parts["decoder"] = _on(decodes_here, self._vae)
        parts["rewards"], unknown = reward_weights(config, cuda)
        held = {name: part.device for name, part in parts.items()}
        always = sum(
            held[name] for name in ("weights", "optimizer", "references and averages", "conditions", "decoder", "rewards")
        )
        whole = weights.whole if chosen.gather_to_sample else weights.gathered
        to_draw = (whole if divided else 0) + weights.unpacked
        to_learn = (weights.gathered + weights.reduced if divided else 0) + weights.unpacked
        flat = gradients if self._ranks > 1 and not divided else 0  # all-reduced as one
        # on CUDA AdamW's step makes one tensor beside each weight, else two beside one of them
        stepping = gradients if cuda and optimizer.name == "adamw" and not chosen.offload else 2 * weights.largest / self._shard
        learned = max(activations, held["gradients"] + flat, held["gradients"] + stepping)
        between = always + held["gradients"]
        # before they are settled, every rank has all weights
        unsettled = weights.stored + weights.alone
        phases = {
            "read": 0 if cuda else weights.read + self._vae,
            "encode": encodes_here * (self._vae + self._encoders + self._encoding) + (not cuda) * (texts + unsettled),
            "sample": between + held["samples"] + to_draw + drawing.drawn,
            "decode": between + held["samples"] + decodes_here * drawing.judged,
            "evaluate": between + to_draw + evaluating if self._run.heldout else 0,
            "learn": always + held["samples"] + to_learn + learned,
            "save": between + (0 if cuda else copy),
        }
        resting_on_host = sum(part.host for part in parts.values())
        encoding = 0 if encodes_here else self._encoders + self._encoding
        host = max(weights.read, unsettled + texts + encoding, resting_on_host + copy) if cuda else 0
        parts["encoders"] = _on(encodes_here, self._encoders)
        parts["encoding"] = _on(encodes_here, self._encoding)
        parts["drawing"] = _on(True, drawing.drawn)
        parts["decoding"] = _on(decodes_here, drawing.judged)
        parts["activations"] = _on(True, max(0.0, activations - held["gradients"]))
        parts["communication"] = _on(True, max(to_draw, to_learn) + flat - weights.unpacked)
        parts["layers in fewer bits, unpacked"] = _on(True, weights.unpacked)
        return Estimate(
            parts={name: part for name, part in parts.items() if part.device or part.host},
            phases={name: round(size) for name, size in phases.items()},
            host=round(host),
            cuda=cuda,
            ranks=self._ranks,
            unknown=unknown,
        )

    def _draw(self) -> Drawing:
        """A rank's drawing: two forwards' worth at most is traced, and stands for the rest."""
        config, run, counter = self._config, self._run, self._counter
        sampling = config.sampling
        wanted = prompts.chosen(run.train, 0, sampling.groups, config.seed)
        batch = prompts.grouped(wanted, sampling.group_size)
        plan = plan_of(run, 0, batch.keys)
        known = run.sampler.conditions(batch.prompts, max(plan.guidance, plan.teacher_guidance), plan.canvas)
        rounds = [len(rows) for rows in prompts.whole_groups(batch, sampling.batch_size * self._ranks)]
        together = math.ceil(max(rounds) / self._ranks)
        mine = sum(math.ceil(rows / self._ranks) for rows in rounds)
        traced = min(together, 2 * sampling.batch_size)
        self._forwards.begin()
        start = counter.live
        drawn = run.sampler.draw(known.rows(range(traced)), plan.rows(range(traced)), sampling.batch_size)
        decoded = counter.lap() - start
        self._plan, self._trajectory, self._batch, self._conditions = plan, drawn, batch, known
        tensors = _tensors(drawn)
        several = mine > sampling.batch_size
        # a trajectory's steps share their latents until several are joined
        each = (sum(map(_size, tensors)) if several else _shared(tensors)) / traced
        medium = _size(drawn.media) / traced
        judges = together * self._ranks if config.distributed.judges == "first" else together
        copies = together * (2 if together > sampling.batch_size else 1) + judges
        rest = mine * each
        judged = max(decoded + (together - traced) * medium, copies * medium)
        if len(rounds) > 1 and not (self._cuda and sampling.keep_on == "host"):
            judged = max(judged, rest)  # all rounds are joined beside what they were
        return Drawing(self._forwards.peak - start, judged, rest)

    def _evaluate(self) -> float:
        """A rank's drawing of held-out prompts, with what is kept of them."""
        run, chosen, sampling = self._run, self._config.evaluation, self._config.sampling
        if not run.heldout:
            return 0
        batch_size = chosen.batch_size or sampling.batch_size
        rows = min(batch_size, max(1, len(run.heldout) * chosen.members // self._ranks))
        some = run.heldout[: max(1, rows // chosen.members)]
        self._forwards.begin()
        start = self._counter.live
        found = evaluate(run.sampler, run.assembly, self._config, some, score=False, keep=1)
        peak = max(self._forwards.peak, self._counter.lap()) - start
        pictures = min(chosen.pictures, len(run.heldout) * chosen.members)
        return peak if self._cuda else max(peak + pictures * _size(found.media), 2 * pictures * _size(found.media))

    def _learn(self) -> float:
        """The most while a few losses are back-propagated, gradients among it, and while preflight does so."""
        config, run, counter = self._config, self._run, self._counter
        algorithm, training, size = config.algorithm, config.training, config.sampling.group_size
        share = math.ceil(len(self._batch.keys) / training.updates / self._ranks)
        rows = min(share, 2 * training.batch_size)
        if algorithm.groupwise:
            together = max(1, training.batch_size // (algorithm.compared or size))
            rows = min(math.ceil(share / size), 2 * together) * size
        experience = self._experience(range(min(rows, len(self._batch.keys))))
        pool = Pool(experience)
        start, terms = counter.begin(), False
        for loss in islice(losses(run, pool, range(len(experience)), 0), LOSSES):
            terms = bool(loss.terms)
            if loss.values.requires_grad:
                loss.values.sum().backward()  # type: ignore[no-untyped-call]
        learned = counter.lap() - start
        if not terms:
            return learned
        del loss  # with its graph; preflight keeps another for the terms, beside their gradients
        for parameter in run.policy.parameters.values():
            parameter.grad = None
        start = counter.begin()
        gradients_flow(pool, run.policy, run.assembly.hooks, algorithm)
        return max(learned, counter.lap() - start)

    def _experience(self, rows: range) -> Experience:
        """As many samples, from those that were drawn over and over."""
        drawn, plan, config = self._trajectory, self._plan.rows(rows), self._config
        again = [row % len(drawn.latents) for row in rows]
        conditions = self._conditions.rows(rows)
        scores = torch.linspace(-1, 1, len(rows))
        return Experience(
            latents=drawn.latents[again],
            steps=tuple(step.mapped(lambda tensor: tensor[again], conditions) for step in drawn.steps),
            conditions=conditions,
            plan=plan,
            rewards=dict.fromkeys(config.rewards, scores),
            advantages=scores,
            groups=self._batch.groups[list(rows)],
            sigmas=drawn.sigmas,
            batch_size=config.training.batch_size,
            times_per_forward=config.training.times_per_forward,
        )


def reward_weights(config: RunConfig, cuda: bool) -> tuple[Part, tuple[str, ...]]:
    """What the weights of all rewards take of the rank that computes them, and the labels of those that do not tell."""
    told: dict[tuple[str, bool], int] = {}
    unknown = []
    for label, reward in (*config.rewards.items(), *config.evaluation.rewards.items()):
        weights, workers = reward.weights(), getattr(reward, "workers", 0)
        if weights is None:
            unknown.append(label)
            continue
        aside = bool(workers) or getattr(reward, "device", "auto") == "cpu"
        told |= {(name, cuda and aside): size * max(1, workers) for name, size in weights.items()}
    device, host = (sum(size for (_, there), size in told.items() if there is on_host) for on_host in (False, True))
    return Part(device, host), tuple(dict.fromkeys(unknown))


def _on(device: bool, size: float) -> Part:
    return Part(round(size)) if device else Part(0, round(size))


def _bytes(module: nn.Module) -> int:
    return sum(map(_size, (*module.parameters(), *module.buffers())))


def _tensors(drawn: Trajectory) -> list[Tensor]:
    """What of a trajectory rests until it is learned from."""
    steps = [tensor for step in drawn.steps for tensor in (step.latents, step.next_latents, step.mean) if tensor is not None]
    return [drawn.latents, *steps]


def _shared(tensors: Iterable[Tensor]) -> int:
    return sum({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def remedies(found: Estimate, config: RunConfig) -> list[str]:
    """Keys that make the largest phase smaller, what helps most first; off-loading, which is slow, comes last."""
    training, sampling, model, shares = config.training, config.sampling, config.model, found.parts
    phase = max(found.phases, key=lambda name: found.phases[name])

    def size(*names: str) -> float:
        return sum(shares[name].device for name in names if name in shares)

    def is_set(key: str, value: object) -> bool:
        return getattr(model, key, value) == value  # not every model has these keys

    drawing, whole, adapters = size("drawing", "decoding"), size("weights", "gradients", "optimizer"), model.train != "full"
    by_phase: dict[str, list[tuple[bool, float, str]]] = {
        "encode": [(not is_set("encoders_on", "host"), size("encoders", "encoding"), "model.encoders_on: host")],
        "sample": [(sampling.batch_size > 1, drawing / 2, "a smaller sampling.batch_size")],
        "decode": [
            (sampling.batch_size > 1, drawing / 2, "a smaller sampling.batch_size"),
            (not is_set("decode_batch_size", 1), drawing / 2, "model.decode_batch_size: 1"),
            (not is_set("tiling", True), drawing / 2, "model.tiling: true"),
            (not is_set("decoder_on", "host"), size("decoder", "decoding"), "model.decoder_on: host"),
        ],
        "evaluate": [
            ((config.evaluation.batch_size or sampling.batch_size) > 1, drawing / 2, "a smaller evaluation.batch_size")
        ],
        "learn": [
            (training.activation_checkpointing == "none", size("activations"), "training.activation_checkpointing: blocks"),
            (training.batch_size > 1, size("activations") / 2, "a smaller training.batch_size"),
        ],
    }
    resting = [
        (adapters and model.quantize is None, size("weights") * 2 / 3, "model.quantize: nf4"),
        (not adapters, whole / 2, "model.train: {lora: {}}"),
        (True, whole * 3 / 4, "more ranks, which share the weights (--nproc)"),
        (training.optimizer.bits == 32, size("optimizer") * 3 / 4, "training.optimizer: adamw8bit"),
        (training.kept_on == "device", size("references and averages"), "training.kept_on: host"),
        (sampling.keep_on == "device", size("samples"), "sampling.keep_on: host"),
        (training.precision == "float32", size("weights") / 2, "training.precision: bf16"),
    ]
    options = by_phase.get(phase, []) + (resting if phase != "encode" else [])
    helps = sorted((-saved, key) for open, saved, key in options if open and saved > found.needed / 50)
    last = ["distributed.offload: true"] if phase != "encode" and whole and not config.distributed.offload else []
    return [key for _, key in helps] + last


def told(size: float) -> str:
    """``size`` bytes, as people read them."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 2**10:.1f} KiB"


def table(found: Estimate) -> Table:
    """Bytes per rank: what holds them, then the most at once in each phase."""
    from rich.table import Table

    rows = Table(title=f"estimated bytes per rank, {found.ranks} rank{'s' if found.ranks > 1 else ''}")
    for name in ("", "device", *(("host",) if found.cuda else ())):
        rows.add_column(name, justify="right" if name else "left")
    for name, part in found.parts.items():
        rows.add_row(name, *(told(size) if size else "" for size in (part.device, part.host)[: 1 + found.cuda]))
    if found.unknown:
        rows.add_row(f"rewards {', '.join(found.unknown)}", "not known")
    rows.add_section()
    for name, size in found.phases.items():
        rows.add_row(f"most at once: {name}", told(size))
    rows.add_section()
    rows.add_row("peak", told(found.peak), *((told(found.host),) if found.cuda else ()))
    return rows


def verdict(found: Estimate, config: RunConfig, card: int) -> str:
    """Whether a card of ``card`` bytes holds the run, and what to change if it does not."""
    if found.needed <= card:
        return f"{told(found.needed)} of a card's {told(card)}, CUDA's own included: it fits" + (
            f", beside what {', '.join(found.unknown)} takes" if found.unknown else ""
        )
    phase = max(found.phases, key=lambda name: found.phases[name])
    changes = "; ".join(remedies(found, config)[:4]) or "a smaller model or size"
    return f"{told(found.needed)}, more than a card's {told(card)}, needed to {phase}; what would help: {changes}"
