"""What a run takes on an accelerator, at the shapes of released models with random weights, as JSON.

    python benchmarks/accelerator.py [--only STEP …] [--minutes 10] [--out benchmarks/results]
    python benchmarks/accelerator.py --tiny

Each step is a process of its own with a time limit, and its figures are written before the next one begins; a step that fails
or takes too long leaves its reason. ``--tiny`` does the same work with tiny models on a CPU, where its seconds mean nothing: it
shows that the script works. Writes accelerator.json, and with ``--tiny`` accelerator_tiny.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from released import RELEASES, random_weights, write_configs
from report import argument_parser, machine, write_results
from torch import Tensor, nn

from flowfactory.config import loading
from flowfactory.config.attention import BACKENDS
from flowfactory.errors import UserError
from flowfactory.models.attention import use_attention
from flowfactory.models.loading_report import load_module
from flowfactory.runs.checkpoints.save import Checkpoints
from flowfactory.runs.estimate.estimate import estimate
from flowfactory.runs.estimate.result import GIB
from flowfactory.runs.versions import versions
from flowfactory.testing import two_parameter
from flowfactory.training.iteration import iterate
from flowfactory.training.setup import Run, prepare_run

REFERENCE = {"images_per_second": 0.305, "of": "Qwen-Image, LoRA, 512 x 512, one H800, as verl-omni reports it"}
SDE = {"name": "flow-sde", "noise_level": 0.7, "num_sde_steps": 1, "sde_steps": [1, 2, 3]}
ALGORITHMS: dict[str, tuple[dict[str, Any], Any]] = {
    "grpo": ({"name": "grpo"}, SDE),
    "nft": ({"name": "nft", "timesteps": {"name": "uniform", "count": 2}}, "ode"),
}


@dataclass(frozen=True)
class Place:
    """Where a step works: the model, tiny or as released, and a folder for its files."""

    model: str
    tiny: bool
    folder: Path

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.tiny else "cuda")

    @property
    def batch_size(self) -> int:
        return 2 if self.tiny or "frames" in RELEASES[self.model].sampling else 8


def settings(place: Place, algorithm: str, **changes: Any) -> dict[str, Any]:
    """A config; ``changes`` of its sections are laid over it, key by key."""
    release, size = RELEASES[place.model], place.batch_size
    chosen, dynamics = ALGORITHMS[algorithm]
    small = {"size": [32, 32], "steps": 3, **({"frames": 5} if "frames" in release.sampling else {})} if place.tiny else {}
    if place.tiny and dynamics is SDE:
        dynamics = {**SDE, "sde_steps": [1, 2]}
    (place.folder / "prompts.txt").write_text("".join(f"{word}\n" for word in ("one", "two", "three", "four")))
    raw: dict[str, Any] = {
        "model": {"name": release.component, "path": str(place.folder / "model"), "train": {"lora": {"rank": 32}}},
        "algorithm": chosen,
        "rewards": {"light": "bright"},
        "prompts": {"train": str(place.folder / "prompts.txt")},
        "sampling": {**release.sampling, "groups": 2, "group_size": size, "batch_size": size, "dynamics": dynamics, **small},
        "training": {"batch_size": size, "activation_checkpointing": "blocks", "optimizer": {"lr": 1e-6}},
        "output": {"dir": str(place.folder / "run")},
        "plugins": [two_parameter.FILE],
        "device": place.device.type,
    }
    for name, section in changes.items():
        raw[name] = {**raw[name], **section}
    return raw


def prepared(place: Place, algorithm: str, **changes: Any) -> Run:
    run = prepare_run(loading.validate(settings(place, algorithm, **changes)))
    run.assembly.hooks.run_started(run.info, run.policy)
    return run


def seconds(place: Place, work: Callable[[], object]) -> float:
    """Of ``work``, what the device has still to do included."""
    if not place.tiny:
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if not place.tiny:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak(place: Place) -> float | None:
    """GiB that the allocator has held at once since the last call; None on a CPU, which does not say."""
    if place.tiny:
        return None
    found = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    return found


class Recorded:
    """The inputs of every forward of a transformer while it is watched, and whether it had gradients."""

    def __init__(self, run: Run) -> None:
        self._run, self._transformer = run, next(iter(run.policy.modules.values()))
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any], bool]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        def note(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            self.calls.append((*_detached(args, options), torch.is_grad_enabled()))

        handle = self._transformer.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def replay(self) -> None:
        """The same forwards and backwards with nothing around them."""
        for args, options, differentiable in self.calls:
            with torch.set_grad_enabled(differentiable), self._run.policy.precision():
                found = self._transformer(*args, **options)[0]
            if differentiable:
                (found if isinstance(found, Tensor) else torch.stack(found)).float().sum().backward()
        self._transformer.zero_grad()


def _detached(*given: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, given)


def iteration(place: Place, algorithm: str = "grpo", **changes: Any) -> dict[str, Any]:
    """Seconds an iteration, images a second, the share outside the transformer, and GiB."""
    run = prepared(place, algorithm, **changes)
    peak(place)
    iterate(run, 0)  # warm, and compiled
    found, shares, recorded = [], [], Recorded(run)
    for number in range(1, 2 if place.tiny else 3):
        recorded = Recorded(run)
        with recorded.watched():
            found.append(seconds(place, lambda number=number: iterate(run, number)))
        most = peak(place)
        shares.append(1 - seconds(place, recorded.replay) / found[-1])
    images = run.config.sampling.groups * run.config.sampling.group_size
    return {
        "seconds": min(found),
        "images_per_second": images / min(found),
        "outside_the_transformer": min(shares),
        "forwards": len(recorded.calls),
        "peak_gib": most,
        "precision": run.config.training.precision,
    }


def ratio(place: Place) -> dict[str, Any]:
    """The largest |ratio - 1| of replayed steps by batch size, with and without a graph, for each way to run the blocks."""
    ways: dict[str, dict[str, Any]] = {"plain": {"activation_checkpointing": "none"}, "checkpointed": {}}
    if not place.tiny:  # a compiler of a CPU takes minutes over it
        ways["compiled"] = {"compile": True}
    return {name: _deviations(prepared(place, "grpo", training=way), place) for name, way in ways.items()}


def _deviations(run: Run, place: Place) -> dict[str, dict[str, float]]:
    from flowfactory.data.batches import make_batch
    from flowfactory.training.plans import sampling_plan

    size = place.batch_size
    batch = make_batch(run.train[:1], size)
    plan = sampling_plan(run.assembly, run.config, 0, batch.keys)
    known = run.sampler.conditions(batch.prompts, plan.guidance, plan.canvas)
    step = run.sampler.draw(known, plan, size).steps[0]
    assert step.log_prob is not None
    found: dict[str, dict[str, float]] = {"graph": {}, "no graph": {}}
    for each in (n for n in (1, 2, 4, 8) if n <= size):
        for name, differentiable in (("graph", True), ("no graph", False)):
            with torch.set_grad_enabled(differentiable):
                pieces = [run.policy.evaluate(step.rows(range(i, i + each))).log_prob for i in range(0, size, each)]
            again = torch.cat([piece.detach() for piece in pieces if piece is not None])
            found[name][str(each)] = float((torch.exp(again - step.log_prob) - 1).abs().max())
    return found


def memory(place: Place) -> dict[str, Any]:
    """GiB of each phase as ``estimate`` says it, and the most of an iteration as it is."""
    config = loading.validate(settings(place, "grpo"))
    told = estimate(config, 1, cuda=True)
    measured = iteration(place)["peak_gib"]
    phases = {name: told.phases[name] / GIB for name in ("sample", "decode", "learn")}
    most = max(phases.values())
    return {"estimated": phases, "measured": measured, "measured_to_estimated": measured and measured / most}


def optimizers(place: Place) -> dict[str, Any]:
    """Seconds and GiB of an iteration by optimizer and storage, beside AdamW over bf16."""
    ways: dict[str, dict[str, Any]] = {
        "adamw": {"training": {"optimizer": {"name": "adamw", "lr": 1e-6}}},
        "adamw8bit": {"training": {"optimizer": {"name": "adamw8bit", "lr": 1e-6}}},
        "paged-adamw8bit": {"training": {"optimizer": {"name": "paged-adamw8bit", "lr": 1e-6}}},
        "nf4": {"model": {"quantize": "nf4"}},
    }
    return {name: _or_reason(lambda way=way: iteration(place, "grpo", **way)) for name, way in ways.items()}


def attention(place: Place) -> dict[str, Any]:
    """Seconds of a forward and a backward of the transformer by back-end; the reason where it cannot run here."""
    run = prepared(place, "grpo")
    recorded = Recorded(run)
    with recorded.watched():
        iterate(run, 0)
    recorded.calls = [call for call in recorded.calls if call[-1]][:1]
    found = {}
    for name in (name for name, backend in BACKENDS.items() if backend.has_backward):

        def once(name: str = name) -> dict[str, float]:
            use_attention(run.policy.modules.values(), name)
            recorded.replay()
            return {"seconds": min(seconds(place, recorded.replay) for _ in range(3))}

        found[name] = _or_reason(once)
    return found


def loading_time(place: Place) -> dict[str, Any]:
    """Seconds from a file of the transformer, in the cache of the system, to the device, and GiB a second."""
    run = prepared(place, "nft")
    transformer = next(iter(run.policy.modules.values()))
    with place.device:
        plain = type(transformer).from_config(transformer.config).to(torch.bfloat16)
    path = place.folder / "saved"
    plain.save_pretrained(path)
    size = sum(file.stat().st_size for file in path.rglob("*.safetensors"))
    del plain

    def read() -> None:
        load_module(type(transformer), path, "transformer", dtype=torch.bfloat16, torch_dtype=torch.bfloat16).to(place.device)

    taken = min(seconds(place, read) for _ in range(2))
    return {"seconds": taken, "gib": size / GIB, "gib_per_second": size / GIB / taken}


def checkpoints(place: Place) -> dict[str, Any]:
    """Seconds that a checkpoint of adapters and moments holds training up, and until it is written."""
    run = prepared(place, "grpo")
    iterate(run, 0)
    written = Checkpoints(place.folder / "checkpoints", run.ranks, run.config, lambda _: None, lambda: None)
    held, whole = [], []
    for number in (1, 2):
        started = time.perf_counter()
        held.append(seconds(place, lambda number=number: written.save(number, run.policy, run.learner)))
        written.finish()
        whole.append(time.perf_counter() - started)
    size = sum(file.stat().st_size for file in (place.folder / "checkpoints" / "000002").rglob("*") if file.is_file())
    return {"held_up": min(held), "written": min(whole), "mib": size / 2**20}


def _or_reason(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except (UserError, RuntimeError) as error:
        return {"failed": " ".join(str(error).split())[:300]}


STEPS: dict[str, tuple[str, Callable[[Place], dict[str, Any]], float]] = {
    "FLUX.1-dev, GRPO": ("FLUX.1-dev", iteration, 100),
    "Qwen-Image, GRPO": ("Qwen-Image", iteration, 120),
    "FLUX.1-dev, ratio": ("FLUX.1-dev", ratio, 150),
    "FLUX.1-dev, memory": ("FLUX.1-dev", memory, 150),
    "FLUX.1-dev, NFT": ("FLUX.1-dev", lambda place: iteration(place, "nft"), 100),
    "Qwen-Image, NFT": ("Qwen-Image", lambda place: iteration(place, "nft"), 120),
    "FLUX.1-dev, attention": ("FLUX.1-dev", attention, 100),
    "FLUX.1-dev, optimizers": ("FLUX.1-dev", optimizers, 200),
    "SD3.5-medium, GRPO": ("SD3.5-medium", iteration, 60),
    "Z-Image, GRPO": ("Z-Image", iteration, 60),
    "Wan2.1-1.3B, NFT": ("Wan2.1-1.3B", lambda place: iteration(place, "nft"), 90),
    "Wan2.1-14B, GRPO": ("Wan2.1-14B", iteration, 150),
    "SD3.5-medium, loading": ("SD3.5-medium", loading_time, 60),
    "FLUX.1-dev, checkpoints": ("FLUX.1-dev", checkpoints, 60),
}
"""By name: the model, the work, and the most seconds it may take. In the order of their worth."""


def take(name: str, tiny: bool, out: Path) -> None:
    """Do one step, and write what it found."""
    model, work, _ = STEPS[name]
    with tempfile.TemporaryDirectory() as temporary:
        place = Place(model, tiny, Path(temporary))
        os.environ["FLOWFACTORY_CACHE"] = str(place.folder / "cache")
        (place.folder / "model").mkdir()
        write_configs(place.folder / "model", RELEASES[model], tiny)
        with random_weights(RELEASES[model], place.device, tiny):
            write_results(out, work(place))


def tried(name: str, tiny: bool, limit: float) -> dict[str, Any]:
    """What a step finds in a process of its own, or why it finds nothing."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "found.json"
        command = [sys.executable, __file__, "--step", name, "--found", str(out), *(["--tiny"] if tiny else [])]
        started = time.perf_counter()
        try:
            subprocess.run(command, timeout=limit, check=True, capture_output=True, text=True)
            found: dict[str, Any] = json.loads(out.read_text())
        except subprocess.TimeoutExpired:
            found = {"failed": f"took more than {limit:.0f} s"}
        except subprocess.CalledProcessError as error:
            found = {"failed": "\n".join(error.stderr.strip().splitlines()[-3:])}
        return {**found, "wall_seconds": round(time.perf_counter() - started, 1)}


def measure(names: Sequence[str], tiny: bool, minutes: float, out: Path) -> dict[str, Any]:
    """All of ``names`` for which there is time, written one by one."""
    until = time.monotonic() + 60 * minutes
    device = "a CPU, tiny models" if tiny else torch.cuda.get_device_name()
    result: dict[str, Any] = {
        "device": device,
        "reference": REFERENCE,
        "machine": machine(),
        "versions": versions(),
        "steps": {},
    }
    for name in names:
        left = until - time.monotonic()
        result["steps"][name] = tried(name, tiny, min(STEPS[name][2], left)) if left > 20 else {"failed": "no time was left"}
        write_results(out, result)
        print(name, json.dumps(result["steps"][name]), flush=True)
    return result


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--minutes", type=float, default=10, help="in all")
    parser.add_argument("--tiny", action="store_true", help="tiny models on a CPU")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        take(arguments.step, arguments.tiny, arguments.found)
        return
    name = "accelerator_tiny.json" if arguments.tiny else "accelerator.json"
    measure(arguments.only, arguments.tiny, arguments.minutes, arguments.out / name)


if __name__ == "__main__":
    main()
