"""How much of a run's time is the transformer's, for every algorithm, as JSON.

    python benchmarks/overhead.py [--out benchmarks/results] [--rounds 5]

The limit is the same forwards and backwards of the same transformer, on the inputs that it had in the run and with nothing
around them. A FLUX.1 of 2 double and 4 single blocks, width 128, with 512 text and 16 image tokens, random weights, adapters
of rank 8, one thread. An iteration of the run and its bare forwards take turns, and a figure is the median over the rounds of
bare seconds / seconds inside: 1.0 is a run that costs nothing. Writes overhead.json.
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
from report import argument_parser, machine, write_results
from tiny_flux import flux1
from torch import nn

from flowfactory.config import loading
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
    "awm": ({"name": "awm", "timesteps": TIMES}, "ode"),
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
        """Seconds of the same forwards and backwards with nothing around them."""
        self._handle.remove()
        started = time.perf_counter()
        for options, differentiable in self.calls:
            with torch.set_grad_enabled(differentiable):
                out = self.transformer(**options)[0]
            if differentiable:
                out.sum().backward()
        seconds = time.perf_counter() - started
        for parameter in self.transformer.parameters():
            parameter.grad = None
        return seconds


def ratio(run: Run, rounds: int) -> dict[str, Any]:
    """Of the algorithm of ``run``."""
    ratios, calls = [], 0
    transformer = run.policy.modules["transformer"]
    iterate(run, 0)  # warm
    for number in range(1, rounds + 1):
        recorded = Recorded(transformer)
        started = time.perf_counter()
        iterate(run, number)
        inside = time.perf_counter() - started
        calls = len(recorded.calls)
        ratios.append(recorded.bare() / inside)
    tokens = [recorded.calls[0][0][name].shape[1] for name in ("encoder_hidden_states", "hidden_states")]
    rounded = [round(r, 4) for r in ratios]
    return {"of_the_limit": statistics.median(rounded), "rounds": rounded, "forwards": calls, "tokens": tokens}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    with checkpoint() as path:
        for name, (algorithm, dynamics) in ALGORITHMS.items():
            rows[name] = ratio(made(path, path.parent, algorithm, dynamics), arguments.rounds)
            print(f"{name:<12} {rows[name]['of_the_limit']:.3f} of the limit, {rows[name]['forwards']} forwards an iteration")
    result = {
        "rows": rows,
        "least": min(row["of_the_limit"] for row in rows.values()),
        "machine": machine(),
        "versions": versions(),
    }
    write_results(arguments.out / "overhead.json", result)


if __name__ == "__main__":
    main()
