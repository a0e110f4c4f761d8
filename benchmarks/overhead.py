"""How much of a run's time is the transformer's, for every algorithm, and what adapters cost in it, as JSON.

    python benchmarks/overhead.py [--out benchmarks/results] [--rounds 5] [--only nft awm]

The limit is the same forwards and backwards of the same transformer, on the inputs that it had in the run and with nothing
around them; those without a gradient with the adapters merged into the weights beforehand, by value. A FLUX.1 of 2 double and 4
single blocks, width 128, with 512 text and 16 image tokens, random weights, adapters of rank 8, one thread.
An iteration of the run, its bare forwards, and an iteration with the forward of peft's own layers take turns.
Figures are medians over the rounds, of CPU seconds: ``of_the_limit`` is bare / inside, 1.0 a run that costs nothing;
``of_peft`` is inside / with peft's layers. Writes overhead.json.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.append(str(Path(__file__).parents[1] / "tests" / "shared"))

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from report import argument_parser, machine, write_results
from tiny_flux import flux1
from torch import nn

from flowfactory.config import loading
from flowfactory.policy import lora
from flowfactory.policy.adapted_linear import AdaptedLinear
from flowfactory.runs.versions import versions
from flowfactory.training.iteration import iterate
from flowfactory.training.setup import Run, prepare_run

SDE = {"name": "flow-sde", "noise_level": 0.7}
TIMES = {"name": "uniform", "count": 2}
ALGORITHMS: dict[str, tuple[dict[str, Any], Any]] = {
    "grpo": ({"name": "grpo"}, SDE),
    "grpo, kl": ({"name": "grpo", "kl": 0.01}, SDE),
    "grpo-guard": ({"name": "grpo-guard"}, SDE),
    "dppo": ({"name": "dppo"}, SDE),
    "nft": ({"name": "nft", "timesteps": TIMES}, "ode"),
    "awm": ({"name": "awm", "kl": 0, "ema_kl": 0, "timesteps": TIMES}, "ode"),
    "dpo": ({"name": "dpo", "timesteps": TIMES}, "ode"),
    "dgpo": ({"name": "dgpo", "timesteps": TIMES}, "ode"),
    "crd": ({"name": "crd", "timesteps": TIMES}, "ode"),
}
SIZE = {
    "num_layers": 2,
    "num_single_layers": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "axes_dims_rope": (8, 12, 12),
}


@contextmanager
def checkpoint() -> Iterator[Path]:
    """The tiny FLUX.1 of the tests with a larger transformer, in a folder of its own, with the cache beside it."""
    from diffusers import FluxTransformer2DModel

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkpoint"
        os.environ["FLOWFACTORY_CACHE"] = str(folder.with_name("cache"))
        flux1(folder)
        small = FluxTransformer2DModel.load_config(folder / "transformer")
        torch.manual_seed(0)
        FluxTransformer2DModel.from_config({**small, **SIZE}).save_pretrained(folder / "transformer")
        yield folder


def settings(path: Path, folder: Path, algorithm: dict[str, Any], dynamics: Any) -> dict[str, Any]:
    (folder / "prompts.txt").write_text("a cat\na photo of a red circle\na dog\nrain\n")
    return {
        "model": {"name": "flux1", "path": str(path), "train": {"lora": {"rank": 8}}, "max_sequence_length": 512},
        "algorithm": algorithm,
        "rewards": {"small": "jpeg-size"},
        "prompts": {"train": str(folder / "prompts.txt")},
        "sampling": {"groups": 2, "group_size": 4, "size": [16, 16], "steps": 4, "batch_size": 8, "dynamics": dynamics},
        "training": {"iterations": 100, "batch_size": 8, "optimizer": {"lr": 1e-6}},
        "output": {"dir": str(folder / "run")},
        "device": "cpu",
    }


def made(path: Path, folder: Path, algorithm: dict[str, Any], dynamics: Any) -> Run:
    run = prepare_run(loading.validate(settings(path, folder, algorithm, dynamics)))
    run.assembly.hooks.run_started(run.info, run.policy)
    return run


class Recorded:
    """The inputs of every forward of a transformer, and whether it had gradients."""

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self.calls: list[tuple[dict[str, Any], bool]] = []
        self._handle = transformer.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        kept = {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
        self.calls.append((kept, torch.is_grad_enabled()))

    def bare(self) -> float:
        """CPU seconds of the same forwards and backwards with nothing around them."""
        self._handle.remove()
        with merged(self.transformer), torch.no_grad():
            started = time.process_time()
            for options, differentiable in self.calls:
                if not differentiable:
                    self.transformer(**options)
            seconds = time.process_time() - started
        started = time.process_time()
        for options, differentiable in self.calls:
            if differentiable:
                self.transformer(**options)[0].sum().backward()
        seconds += time.process_time() - started
        for parameter in self.transformer.parameters():
            parameter.grad = None
        return seconds


@contextmanager
def merged(transformer: nn.Module) -> Iterator[None]:
    """Within it the adapters are in the weights, and their layers compute the layer alone."""
    layers: list[Any] = [layer for layer in transformer.modules() if isinstance(layer, BaseTunerLayer)]
    weights = [layer.base_layer.weight for layer in layers]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, layer in zip(weights, layers, strict=True):
            weight.add_(layer.get_delta_weight(lora.ADAPTER))
    with lora.adapters_disabled([transformer]):
        yield
    with torch.no_grad():
        torch._foreach_copy_(weights, before)


@contextmanager
def as_peft_computes(transformer: nn.Module) -> Iterator[None]:
    """Within it the layers with adapters are peft's own."""
    layers = [layer for layer in transformer.modules() if type(layer) is AdaptedLinear]
    for layer in layers:
        layer.__class__ = PeftLinear
    yield
    for layer in layers:
        layer.__class__ = AdaptedLinear


def iteration_seconds(run: Run, number: int) -> float:
    started = time.process_time()
    iterate(run, number)
    return time.process_time() - started


def ratio(run: Run, rounds: int) -> dict[str, Any]:
    """Of the algorithm of ``run``."""
    ratios, against, calls = [], [], 0
    transformer = run.policy.modules["transformer"]
    iterate(run, 0)  # warm
    for number in range(1, rounds + 1):
        recorded = Recorded(transformer)
        inside = iteration_seconds(run, number)
        calls = len(recorded.calls)
        ratios.append(recorded.bare() / inside)
        with as_peft_computes(transformer):
            against.append(inside / iteration_seconds(run, number))
    tokens = [recorded.calls[0][0][name].shape[1] for name in ("encoder_hidden_states", "hidden_states")]
    rounded, compared = ([round(each, 4) for each in found] for found in (ratios, against))
    return {
        "of_the_limit": statistics.median(rounded),
        "of_peft": statistics.median(compared),
        "rounds": rounded,
        "rounds_of_peft": compared,
        "forwards": calls,
        "tokens": tokens,
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    with checkpoint() as path:
        for name in arguments.only:
            row = rows[name] = ratio(made(path, path.parent, *ALGORITHMS[name]), arguments.rounds)
            print(f"{name:<12} {row['of_the_limit']:.3f} of the limit, {row['of_peft']:.3f} of what peft's layers cost")
    result = {
        "rows": rows,
        "load": os.getloadavg(),
        "least": min(row["of_the_limit"] for row in rows.values()),
        "machine": machine(),
        "versions": versions(),
    }
    write_results(arguments.out / "overhead.json", result)


if __name__ == "__main__":
    main()
