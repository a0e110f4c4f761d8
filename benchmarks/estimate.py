"""The peaks that `flowfactory estimate` foretells against those of the same runs, on a CPU, as JSON.

    python benchmarks/estimate.py [--only NAME …] [--out benchmarks/results]

Measured is the most bytes that PyTorch's allocators had given out at once during a whole run, by their own record (of
torch.profiler). The record counts files that are mapped while weights are read, which an estimate knows nothing of. `resident`
is by how much the process grew, with libraries, heap and the record itself. Two iterations a case: the tiny generator, and SD3
and FLUX checkpoints of some 70 million random weights. Cases that are not run keep their figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from report import argument_parser, machine

SHARED = Path(__file__).parents[1] / "tests" / "shared"
LORA = {"lora": {"rank": 16, "alpha": 32}}
GRPO = {"name": "grpo"}
NFT = {"name": "nft"}
PROMPTS = ("a red circle", "a blue square", "a green cat")
TINY = {"size": [32, 32], "groups": 8, "group_size": 8, "batch_size": 32}
MIDDLE = {"size": [256, 256], "groups": 2, "group_size": 2, "batch_size": 2}


def case(model: str, train: Any, algorithm: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": model, "train": train, "algorithm": algorithm, **more}


CASES = {
    "tiny, LoRA, GRPO": case("tiny", LORA, GRPO),
    "tiny, LoRA, NFT": case("tiny", LORA, NFT),
    "tiny, full, GRPO": case("tiny", "full", GRPO),
    "tiny, full, NFT": case("tiny", "full", NFT),
    "tiny, full, GRPO with KL": case("tiny", "full", {"name": "grpo", "kl": 0.01}),
    "SD3, LoRA, GRPO": case("sd3", LORA, GRPO),
    "SD3, LoRA, GRPO, checkpointed": case("sd3", LORA, GRPO, activation_checkpointing="blocks"),
    "SD3, full, NFT": case("sd3", "full", NFT),
    "SD3, full, NFT, checkpointed": case("sd3", "full", NFT, activation_checkpointing="blocks"),
    "FLUX, LoRA, NFT": case("flux1", LORA, NFT),
    "FLUX, LoRA, GRPO, nf4": case("flux1", LORA, GRPO, quantize="nf4"),
    "FLUX, full, GRPO": case("flux1", "full", GRPO),
    "FLUX, full, GRPO, 8-bit": case("flux1", "full", GRPO, optimizer="adamw8bit"),
    "FLUX, full, GRPO, 8-bit, checkpointed": case(
        "flux1", "full", GRPO, optimizer="adamw8bit", activation_checkpointing="blocks"
    ),
    "tiny, full, NFT, two ranks": case("tiny", "full", NFT, ranks=2),
    "FLUX, full, GRPO, two ranks": case("flux1", "full", GRPO, ranks=2),
    "FLUX, LoRA, GRPO, two ranks": case("flux1", LORA, GRPO, ranks=2),
    "FLUX, LoRA, GRPO, two ranks that share forwards": case("flux1", LORA, GRPO, ranks=2, context=2),
    "FLUX, full, NFT, two ranks that share forwards, whole weights": case("flux1", "full", NFT, ranks=2, context=2, shard=1),
}


def config(chosen: dict[str, Any], folder: Path) -> Path:
    """The file of a run of two iterations."""
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    sampling = TINY if chosen["model"] == "tiny" else MIDDLE
    model = {"name": chosen["model"], "train": chosen["train"]}
    if chosen["model"] != "tiny":
        model |= {"path": str(folder.parent / chosen["model"]), "max_sequence_length": 32 if chosen["model"] == "sd3" else 128}
    if "quantize" in chosen:
        model["quantize"] = chosen["quantize"]
    training = {key: chosen[key] for key in ("optimizer", "activation_checkpointing", "precision") if key in chosen}
    dynamics = {"name": "flow-sde", "sde_steps": [0, 1], "num_sde_steps": 2} if chosen["algorithm"]["name"] == "grpo" else "ode"
    raw = {
        "model": model,
        "algorithm": chosen["algorithm"],
        "rewards": {"size": {"name": "jpeg-size"}},
        "prompts": {"train": "prompts.txt", "heldout": "prompts.txt"},
        "sampling": {**sampling, "steps": 4, "dynamics": dynamics},
        "training": {"iterations": 2, "batch_size": sampling["batch_size"], **training},
        "distributed": {key: chosen[key] for key in ("context", "shard") if key in chosen},
        "output": {"dir": str(folder / "run")},
        "device": "cpu",
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def checkpoints(folder: Path) -> None:
    """SD3 and FLUX pipelines of middle size below ``folder``, in bf16 as released ones are."""
    import torch
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        StableDiffusion3Pipeline,
    )

    sys.path.insert(0, str(SHARED))
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from flowfactory.testing.tiny_checkpoints import (
        clip_text,
        clip_tokenizer,
        flux_transformer,
        kl_vae,
        sd3_transformer,
        t5_text,
        t5_tokenizer,
    )

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl_vae((32, 64, 64, 64), 16, 0.1, 1.5),
        text_encoder=clip_text(CLIPTextModelWithProjection, len(clip), 64),
        tokenizer=clip,
        text_encoder_2=clip_text(CLIPTextModelWithProjection, len(clip), 64),
        tokenizer_2=clip,
        text_encoder_3=t5_text(len(t5), 256),
        tokenizer_3=t5,
        transformer=sd3_transformer(32, 16, 8, (8, 64), 256, 128),
    ).to(torch.bfloat16).save_pretrained(folder / "sd3")
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl_vae((32, 64, 64, 64), 16, 0.1, 1.5),
        text_encoder=clip_text(CLIPTextModel, len(clip), 64),
        tokenizer=clip,
        text_encoder_2=t5_text(len(t5), 256),
        tokenizer_2=t5,
        transformer=flux_transformer(64, (4, 8), (8, 64), 256, 64, axes_dims_rope=(16, 24, 24)),
    ).to(torch.bfloat16).save_pretrained(folder / "flux1")


def foretold(path: Path, ranks: int) -> dict[str, Any]:
    from flowfactory.config import loading as configs
    from flowfactory.runs.estimate.estimate import estimate

    found = estimate(configs.load(path), ranks)
    parts = {name: part.device for name, part in found.parts.items()}
    return {
        "estimated": found.peak,
        "phase": max(found.phases, key=found.phases.__getitem__),
        "phases": found.phases,
        "parts": parts,
    }


def let_gloo_go() -> None:
    """Wait a moment after each exchange of ranks that share forwards, until gloo holds no tensor of it any more.

    Its threads would else be the last to hold some, and what they give back is missing in the record.
    """
    import torch.distributed as dist

    def waiting(exchange: Any) -> Any:
        def run(*args: Any, **given: Any) -> None:
            exchange(*args, **given)
            time.sleep(0.02)

        return run

    for name in ("all_to_all_single", "all_gather"):
        setattr(dist, name, waiting(getattr(dist, name)))


def measured(path: Path, ranks: int) -> dict[str, Any] | None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    from flowfactory.config import loading as configs
    from flowfactory.distributed.process_group import join_process_group
    from flowfactory.runs.train import train
    from flowfactory.training.metrics import peak_memory

    torch.set_num_threads(1)
    resolved = configs.load(path)
    if resolved.distributed.context > 1:
        let_gloo_go()
    torch.nn.Linear(8, 8)(torch.zeros(2, 8)).sum().backward()
    before = peak_memory(torch.device("cpu"))
    with join_process_group(resolved) as joined, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        assert joined.count == ranks
        train(resolved, say=lambda _: None, ranks=joined)
    if not joined.leads:
        return None  # the first rank, which encodes the prompts too, has the most
    resident = peak_memory(torch.device("cpu")) - before
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    live = most = 0
    at, start = 0.0, events[0].start_ns()
    events.sort(key=lambda event: event.start_ns())
    for event in events:
        live += event.nbytes()
        if live > most:
            most, at = live, (event.start_ns() - start) / max(1, events[-1].start_ns() - start)
    return {"measured": most, "at": round(at, 3), "resident": round(resident * 2**20)}


def alone(work: str, path: Path, ranks: int) -> dict[str, Any]:
    """What ``work`` finds in a process of its own, or in as many as there are ranks."""
    together = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--rdzv-backend", "c10d"]
    launcher = [*together, "--rdzv-endpoint", "localhost:0"] if work == "measured" and ranks > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FLOWFACTORY_CACHE": str(path.parent / f"cache-{work}")}
    command = [sys.executable, *launcher, __file__, work, str(path), str(ranks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    results = arguments.out / "estimate.json"
    cases = json.loads(results.read_text())["cases"] if results.exists() else {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints(folder)
        for number, key in enumerate(arguments.only):
            (folder / str(number)).mkdir()
            path, ranks = config(CASES[key], folder / str(number)), CASES[key].get("ranks", 1)
            found = alone("foretold", path, ranks) | alone("measured", path, ranks)
            cases[key] = {"ratio": round(found["estimated"] / found["measured"], 4), **found}
            print(f"{key}: {cases[key]}", file=sys.stderr)
            ratios = [case["ratio"] for case in cases.values()]
            result = {"ratios": [min(ratios), max(ratios)], "cases": cases, "machine": machine()}
            results.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["foretold"] or sys.argv[1:2] == ["measured"]:
        found = {"foretold": foretold, "measured": measured}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
        if found is not None:
            print(json.dumps(found))
    else:
        main()
