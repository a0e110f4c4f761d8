"""What a start costs before anything is drawn: CPU seconds and memory of whole processes, as JSON.

    python benchmarks/startup.py [--out benchmarks/results] [--rounds 5] [--older CHECKOUT] [--commands]

`reference` is a plain script such as people write: FluxPipeline.from_pretrained, an adapter from peft, torch.optim.AdamW, up to
the end of the transformer's first forward. `warm` is `flowfactory run` on the same checkpoint, all of whose prompts are in the
cache, up to the end of its first forward; `older` is the same with the sources of another checkout. Beside them `torch` alone,
and the commands that draw nothing. The checkpoint is a tiny FLUX.1 with random weights, in float32 on the CPU, one thread.
They take turns; figures are medians over the rounds, user and system time of the whole process. Writes startup.json, with the
load of the machine in the last 1, 5 and 15 minutes: where others were at work beside it, ratios alone mean something.

With `--commands`, the commands that ask about a run alone, and `torch` beside them; figures are the least of the rounds, which
others at work disturb least. Writes startup_commands.json.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from report import argument_parser, machine, write_results

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parents[1]

REFERENCE = """
import sys, torch
from diffusers import FluxPipeline
from peft import LoraConfig

pipeline = FluxPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
for module in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.transformer):
    module.requires_grad_(False)
transformer = pipeline.transformer
transformer.add_adapter(LoraConfig(r=8, lora_alpha=8, init_lora_weights="gaussian", target_modules=["to_q", "to_k", "to_v"]))
optimizer = torch.optim.AdamW([weight for weight in transformer.parameters() if weight.requires_grad], lr=1e-4)
transformer.register_forward_hook(lambda *_: sys.exit(0))
pipeline("a cat", height=16, width=16, num_inference_steps=4, output_type="latent")
sys.exit("no forward")
"""

RUN = """
import os, sys

from flowfactory.cli import main, run

train = run._train

def train_to_the_first_forward(*given):
    from torch.nn.modules.module import register_module_forward_hook

    register_module_forward_hook(lambda module, *_: os._exit(0) if type(module).__name__ == "FluxTransformer2DModel" else None)
    train(*given)

run._train = train_to_the_first_forward
main.main()
sys.exit("no forward")
"""


class Cost(NamedTuple):
    """CPU seconds, and the most memory in MB."""

    cpu: float
    memory: float


def cost(arguments: list[str], checkout: Path, folder: Path) -> Cost:
    """Of a process of Python with ``arguments`` and the sources of ``checkout``. RuntimeError: it failed."""
    sources = [*checkout.glob("core/src"), *checkout.glob("plugins/*/src"), *checkout.glob("flowfactory-*/src")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sources)), "FLOWFACTORY_CACHE": str(folder / "cache")}
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=told, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            told.seek(0)
            raise RuntimeError(told.read().decode())
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


CONFIG = """
model: {name: flux1, path: checkpoint, train: {lora: {rank: 8}}}
algorithm: grpo
rewards: {small: jpeg-size}
prompts: {train: prompts.txt}
sampling: {groups: 2, group_size: 4, size: [16, 16], steps: 4, dynamics: flow-sde}
training: {iterations: 1}
device: cpu
"""


def prepare(folder: Path) -> None:
    """The checkpoint, the config and prompts, made by another process: this one is to stay small."""
    (folder / "run.yaml").write_text(CONFIG)
    (folder / "prompts.txt").write_text("a cat\na photo of a red circle\na dog\nrain\n")
    make = "import sys; from pathlib import Path; from tiny_flux import flux1; flux1(Path(sys.argv[1]))"
    shared = [str(ROOT / "tests" / "shared"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, shared))}
    subprocess.run([sys.executable, "-c", make, str(folder / "checkpoint")], env=environment, check=True)


def commands(folder: Path, older: Path | None) -> dict[str, tuple[list[str], Path]]:
    """By name the arguments for Python, and the checkout whose sources are used."""
    warm = ["-c", RUN, "run", "run.yaml", "--out", "started"]
    given = {
        "reference": (["-c", REFERENCE, str(folder / "checkpoint")], ROOT),
        "warm": (warm, ROOT),
        "older": (warm, older or ROOT),
        "torch": (["-c", "import torch"], ROOT),
        "dry-run": (["-m", "flowfactory", "run", "run.yaml", "--dry-run"], ROOT),
        "help": (["-m", "flowfactory", "--help"], ROOT),
        "plugins": (["-m", "flowfactory", "plugins", "list"], ROOT),
    }
    if older is None:
        del given["older"]
    return given


def asking() -> dict[str, tuple[list[str], Path]]:
    """The commands that ask about a run, and draw nothing."""
    typed = {
        "version": ["--version"],
        "help": ["--help"],
        "plugins": ["plugins", "list"],
        "check": ["check", "quickstart"],
        "dry-run": ["run", "quickstart", "--dry-run"],
    }
    flowfactory = {name: (["-m", "flowfactory", *words], ROOT) for name, words in typed.items()}
    return {**flowfactory, "torch": (["-c", "import torch"], ROOT)}


def measure(measured: dict[str, tuple[list[str], Path]], folder: Path, rounds: int) -> dict[str, list[Cost]]:
    """By name the costs of each round, in turns; a first one, which fills caches, is not counted."""
    found: dict[str, list[Cost]] = {name: [] for name in measured}
    for number in range(rounds + 1):
        for name, (line, checkout) in measured.items():
            subprocess.run(["rm", "-rf", str(folder / "started")], check=True)
            spent = cost(line, checkout, folder)
            if number:
                found[name].append(spent)
    return found


def measure_commands(out: Path, rounds: int) -> None:
    """Write startup_commands.json."""
    from flowfactory.runs.versions import versions

    with tempfile.TemporaryDirectory() as temporary:
        found = measure(asking(), Path(temporary), rounds)
    least = {name: Cost(*map(min, zip(*costs, strict=True))) for name, costs in found.items()}
    rows = {name: {"cpu_s": round(one.cpu, 2), "memory_mb": round(one.memory)} for name, one in least.items()}
    for name, row in rows.items():
        print(f"{name:<10} {row['cpu_s']:6.2f} CPU s {row['memory_mb']:6} MB")
    result = {"rows": rows, "rounds": rounds, "machine": machine(), "load": os.getloadavg(), "versions": versions()}
    write_results(out / "startup_commands.json", result)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--older", type=Path, help="another checkout, to be measured beside this one")
    parser.add_argument("--commands", action="store_true", help="the commands that ask about a run alone")
    arguments = parser.parse_args()
    if arguments.commands:
        measure_commands(arguments.out, arguments.rounds)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        found = measure(commands(folder, arguments.older and arguments.older.resolve()), folder, arguments.rounds)
    rows: dict[str, dict[str, Any]] = {}
    for name, costs in found.items():
        cpu, memory = (statistics.median(values) for values in zip(*costs, strict=True))
        rows[name] = {"cpu_s": round(cpu, 2), "memory_mb": round(memory), "rounds_cpu_s": [round(one.cpu, 2) for one in costs]}
        print(f"{name:<10} {cpu:6.2f} CPU s {memory:6.0f} MB")
    ratios = {key: round(rows["warm"][key] / rows["reference"][key], 3) for key in ("cpu_s", "memory_mb")}
    print(f"warm start, of the reference: {ratios['cpu_s']} of the CPU seconds, {ratios['memory_mb']} of the memory")
    from flowfactory.runs.versions import versions

    result = {"rows": rows, "of_the_reference": ratios, "machine": machine(), "load": os.getloadavg(), "versions": versions()}
    write_results(arguments.out / "startup.json", result)


if __name__ == "__main__":
    main()
