"""The most memory of a machine while its ranks read and divide a checkpoint, against the checkpoint's files, as JSON.

    python benchmarks/host_memory.py [--gb 1] [--ranks 4] [--only NAME …] [--out benchmarks/results]

Checkpoints are of FLUX's shape: 19 double and 38 single blocks, in several safetensors files, random. Its width is what makes
them `--gb` gigabytes. Ranks are processes that exchange through gloo and do all that `flowfactory run` does until the weights
are in place; the host is their device, so shards are host memory too.

Counted is PSS, from /proc/PID/smaps_rollup of every rank: memory of a rank's own, and of each page that processes share its
part, so that the sum counts such a page once; `samples` times, as often as the machine lets it. Pages of a file that no
process maps any longer are the system's cache and not counted. Subtracted is `baseline`: what the same ranks held after they
had done the same with a checkpoint of kilobytes, which is libraries and heap; what of the heap was free then is used again,
so that a peak may be a few hundredths too low. `own` and `mapped` are the parts of the peak that no file is behind, and that
one is; `files` are the bytes of the transformer's files, and `resting` those of its weights once they are in place.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from report import argument_parser, machine, write_results

LORA = {"lora": {"rank": 4, "alpha": 8}}  # to the width here what some 20 are to FLUX's
ITEMSIZE = {"float32": 4, "bf16": 2}
CASES: dict[str, dict[str, Any]] = {
    "LoRA, bf16 files, bf16 run, divided": {"files": "bf16", "run": "bf16", "train": LORA},
    "full, float32 files, float32 run, divided": {"files": "float32", "run": "float32", "train": "full"},
    "full, bf16 files, float32 run, divided": {"files": "bf16", "run": "float32", "train": "full"},
    "LoRA, float32 files, bf16 run, divided": {"files": "float32", "run": "bf16", "train": LORA},
    "LoRA, bf16 files, bf16 run, every rank has all": {"files": "bf16", "run": "bf16", "train": LORA, "shard": 1},
}


def make_checkpoint(folder: Path, dtype: str, size: float) -> None:
    """A FLUX pipeline whose transformer's files have about ``size`` bytes in all; all else is tiny."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
    from transformers import CLIPTextModel

    from flowfactory.testing.tiny_checkpoints import clip_text, clip_tokenizer, flux_transformer, kl_vae, t5_text, t5_tokenizer

    torch.manual_seed(0)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    layers = (19, 38)
    # a double block has 36 times the square of the width, a single one 15 times
    heads = max(1, round((size / ITEMSIZE[dtype] / (36 * layers[0] + 15 * layers[1])) ** 0.5 / 64))
    transformer = flux_transformer(64, layers, (heads, 64), 64, 64, axes_dims_rope=(8, 28, 28))
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl_vae((32, 32, 32, 32), 16, 0.1, 1.5),
        text_encoder=clip_text(CLIPTextModel, len(clip), 64),
        tokenizer=clip,
        text_encoder_2=t5_text(len(t5), 64),
        tokenizer_2=t5,
        transformer=transformer,
    )
    pipeline.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    pipeline.save_pretrained(folder, max_shard_size=max(2**20, round(size / 3)))


def write_config(case: dict[str, Any], checkpoint: Path, file: Path) -> Path:
    """The run of ``case`` on ``checkpoint``."""
    raw = {
        "model": {"name": "flux1", "path": str(checkpoint), "train": case["train"], "max_sequence_length": 32},
        "algorithm": {"name": "nft"},
        "rewards": {"size": {"name": "jpeg-size"}},
        "prompts": {"train": str(file.with_name("prompts.txt"))},
        "sampling": {"groups": 2, "group_size": 2, "size": [64, 64], "steps": 2},
        "training": {"iterations": 1, "precision": case["run"]},
        "distributed": {"shard": case.get("shard", "auto")},
        "output": {"dir": str(file.with_suffix(""))},
        "device": "cpu",
    }
    file.write_text(yaml.safe_dump(raw))
    return file


def place_as_rank(folder: Path) -> None:
    """What a rank does: first with the tiny checkpoint, then, when it is told to, with the large one."""
    import gc

    import torch

    from flowfactory.config import loading as configs
    from flowfactory.distributed.process_group import join_process_group
    from flowfactory.policy.policy import Policy
    from flowfactory.training.setup import prepare_run

    torch.set_num_threads(1)
    rank, large = os.environ["RANK"], configs.load(folder / "large.yaml")
    distribute = Policy.distribute

    def told(policy: Policy, *arguments: Any) -> None:
        distribute(policy, *arguments)
        tell(folder / f"placed{rank}", folder / "end")  # the optimizer comes next, which is no weight

    with join_process_group(large) as ranks:
        prepare_run(configs.load(folder / "tiny.yaml"), ranks=ranks)
        gc.collect()
        tell(folder / f"ready{rank}", folder / "go")
        setattr(Policy, "distribute", told)  # noqa: B010
        prepare_run(large, ranks=ranks)


def tell(file: Path, answer: Path) -> None:
    """Make ``file``, and wait for ``answer``."""
    file.touch()
    while not answer.exists():
        time.sleep(0.02)


def held(pids: list[int]) -> dict[str, int]:
    """Bytes that the processes hold together: in all, of their own, and mapped from files."""
    found = {"total": 0, "own": 0, "mapped": 0}
    keys = {"Pss:": "total", "Pss_Anon:": "own", "Pss_File:": "mapped"}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, *rest = line.split()
            if name in keys:
                found[keys[name]] += int(rest[0]) * 1024
    return found


def measure(case: dict[str, Any], folder: Path, ranks: int) -> dict[str, Any]:
    """The peak of ``ranks`` processes with the checkpoints in ``folder``, and what is left of it."""
    work = Path(tempfile.mkdtemp(dir=folder))
    (work / "prompts.txt").write_text("a red circle\na blue square\n")
    large = folder / case["files"]
    write_config(case, folder / f"tiny-{case['files']}", work / "tiny.yaml")
    write_config(case, large, work / "large.yaml")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    surroundings = {**os.environ, "FLOWFACTORY_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--as-rank", str(work)],
            env={**surroundings, **{key: str(value) for key, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(ranks)
    ]
    pids = [process.pid for process in started]

    def reached(name: str) -> bool:
        if any(process.poll() for process in started):
            raise SystemExit(f"a rank failed before it was {name}")
        return all((work / f"{name}{rank}").exists() for rank in range(ranks))

    try:
        while not reached("ready"):
            time.sleep(0.05)
        baseline, samples = held(pids), []
        (work / "go").touch()
        while not reached("placed"):
            samples.append(held(pids))
            time.sleep(0.003)
        end = held(pids)
    finally:
        for process in started:
            process.kill()
            process.wait()
    peak = max(samples, key=lambda sample: sample["total"])
    files = sum(file.stat().st_size for file in (large / "transformer").glob("*.safetensors"))
    copies = ranks if case.get("shard") == 1 and case["files"] != case["run"] else 1
    resting = files * ITEMSIZE["float32" if case["train"] == "full" else case["run"]] // ITEMSIZE[case["files"]] * copies
    above = {name: size - baseline[name] for name, size in peak.items()}
    return {
        **case,
        "ranks": ranks,
        "bytes": {
            "files": files,
            "resting": resting,
            "baseline": baseline["total"],
            "peak": above["total"],
            "own": above["own"],
            "mapped": above["mapped"],
            "in place": end["total"] - baseline["total"],
        },
        "peak / files": round(above["total"] / files, 3),
        "peak / larger of files and resting": round(above["total"] / max(files, resting), 3),
        "samples": len(samples),
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for dtype in sorted({CASES[key]["files"] for key in arguments.only}):
            make_checkpoint(folder / f"tiny-{dtype}", dtype, 1)
            make_checkpoint(folder / dtype, dtype, arguments.gb * 1e9)
        for key in arguments.only:
            found[key] = measure(CASES[key], folder, arguments.ranks)
            print(f"{key}: {found[key]['peak / files']} x the files", file=sys.stderr)
            told = write_results(arguments.out / "host_memory.json", {"machine": machine(), "cases": found})
    print(told)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-rank"]:
        place_as_rank(Path(sys.argv[2]))
    else:
        main()
