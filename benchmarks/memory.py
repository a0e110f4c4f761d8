"""What `flowfactory estimate` says of released models on released cards, as JSON and as the table of docs/memory.md.

    python benchmarks/memory.py [--only NAME …] [--out benchmarks/results]

The checkpoints are folders of configs, as published, without weights, with made-up tokenizers, whose texts are padded to the
same lengths. The figures are estimates: benchmarks/estimate.py tells how near such estimates came where runs could be measured.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from released import RELEASES, write_configs
from report import argument_parser, write_results
from transformers import CLIPTextConfig, T5Config, UMT5Config

from flowfactory.config import loading as configs
from flowfactory.runs.estimate.estimate import estimate
from flowfactory.runs.estimate.result import GIB
from flowfactory.runs.estimate.table import verdict
from flowfactory.testing.tiny_checkpoints import clip_tokenizer, t5_tokenizer

XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}


def flux(folder: Path) -> None:
    """FLUX.1-dev: 19 double and 38 single blocks of width 3072, T5-XXL and CLIP-L."""
    clip = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    encoders = {"text_encoder": clip, "text_encoder_2": T5Config(vocab_size=32128, **XXL)}
    _write(folder, "FLUX.1-dev", {**encoders, "tokenizer": clip_tokenizer(77, 49408), "tokenizer_2": t5_tokenizer(512, 32128)})


def wan(folder: Path) -> None:
    """Wan2.1-T2V-14B: 40 blocks of width 5120, UMT5-XXL."""
    _write(folder, "Wan2.1-14B", {"text_encoder": UMT5Config(vocab_size=256384, **XXL), "tokenizer": t5_tokenizer(512, 256384)})


def _write(folder: Path, name: str, encoders: dict[str, Any]) -> None:
    write_configs(folder, RELEASES[name])
    for part, config in encoders.items():
        config.save_pretrained(folder / part)


CHECKPOINTS = {"flux1": flux, "wan-t2v": wan}
PICTURE = {"groups": 48, "group_size": 16, "size": [512, 512], "steps": 10, "guidance": 3.5, "keep_on": "host"}
VIDEO = {"groups": 16, "group_size": 8, "size": [480, 832], "frames": 81, "steps": 20, "guidance": 5.0, "keep_on": "host"}
SPARING = {"precision": "bf16", "activation_checkpointing": "blocks"}
LORA = {"lora": {"rank": 32, "alpha": 64}}

PROMPTS = 20_000

CASES: dict[str, dict[str, Any]] = {
    "FLUX.1-dev, LoRA, one 24 GB card": {
        "ranks": 1,
        "card": 24,
        "model": {"name": "flux1", "train": LORA, "quantize": "nf4", "decode_batch_size": 1},
        "sampling": {**PICTURE, "batch_size": 2},
        "training": {**SPARING, "batch_size": 2, "optimizer": "adamw8bit"},
    },
    "FLUX.1-dev, LoRA, one 80 GB card": {
        "ranks": 1,
        "card": 80,
        "model": {"name": "flux1", "train": LORA},
        "sampling": {**PICTURE, "batch_size": 8},
        "training": {**SPARING, "batch_size": 8},
    },
    "FLUX.1-dev, LoRA, 1024 x 1024, one 80 GB card": {
        "ranks": 1,
        "card": 80,
        "model": {"name": "flux1", "train": LORA, "decode_batch_size": 1},
        "sampling": {**PICTURE, "size": [1024, 1024], "batch_size": 4},
        "training": {**SPARING, "batch_size": 4},
    },
    "FLUX.1-dev, full, eight 80 GB cards": {
        "ranks": 8,
        "card": 80,
        "model": {"name": "flux1", "train": "full"},
        "sampling": {**PICTURE, "batch_size": 8},
        "training": {**SPARING, "batch_size": 4, "optimizer": {"name": "adamw", "lr": 1e-5}},
    },
    "Wan2.1-T2V-14B, LoRA, one 80 GB card": {
        "ranks": 1,
        "card": 80,
        "model": {"name": "wan-t2v", "train": LORA, "quantize": "nf4", "decode_batch_size": 1},
        "sampling": {**VIDEO, "batch_size": 1},
        "training": {**SPARING, "batch_size": 1},
    },
    "Wan2.1-T2V-14B, LoRA, eight 80 GB cards": {
        "ranks": 8,
        "card": 80,
        "model": {"name": "wan-t2v", "train": LORA, "decode_batch_size": 1},
        "sampling": {**VIDEO, "batch_size": 1},
        "training": {**SPARING, "batch_size": 1},
    },
    "Wan2.1-T2V-14B, LoRA, 720 x 1280, eight 80 GB cards": {
        "ranks": 8,
        "card": 80,
        "model": {"name": "wan-t2v", "train": LORA, "decode_batch_size": 1},
        "sampling": {**VIDEO, "size": [720, 1280], "batch_size": 1},
        "training": {**SPARING, "batch_size": 1},
        "distributed": {"context": 8},
    },
}


def foretold(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What ``estimate`` says of ``case``, with the checkpoints in ``folder``."""
    (folder / "prompts.txt").write_text("".join(f"a red circle and {n} blue squares\n" for n in range(PROMPTS)))
    raw = {
        "model": {**case["model"], "path": str(folder / case["model"]["name"])},
        "algorithm": {"name": "grpo"},
        "rewards": {"size": {"name": "jpeg-size"}},
        "prompts": {"train": str(folder / "prompts.txt")},
        "sampling": {**case["sampling"], "dynamics": {"name": "flow-sde", "sde_steps": [1, 2, 3], "num_sde_steps": 1}},
        "training": case["training"],
        "distributed": case.get("distributed", {}),
        "output": {"dir": str(folder / "run")},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    config = configs.load(path)
    found = estimate(config, case["ranks"], cuda=True)
    return {
        "settings": {key: case[key] for key in ("model", "sampling", "training", "distributed", "ranks") if key in case},
        "gib": {
            "parts": {name: [round(size / GIB, 2) for size in (part.device, part.host)] for name, part in found.parts.items()},
            "phases": {name: round(size / GIB, 2) for name, size in found.phases.items()},
            "peak": round(found.peak / GIB, 2),
            "needed": round(found.needed / GIB, 2),
            "host": round(found.host / GIB, 2),
            "node": round(found.machine / GIB, 2),
        },
        # cards are sold by 10^9 bytes, or somewhat less than their name says
        "verdict": verdict(found, config, round(case["card"] * 0.93 * GIB)),
    }


def table(found: dict[str, Any]) -> str:
    """Markdown, a row a case."""
    head = "| run | weights | optimizer | activations | encode | sample | decode | learn | needed | host | node |"
    lines = [head, "|---|" + "---:|" * 10]
    for name, case in found.items():
        gib = case["gib"]
        cells = [gib["parts"].get(part, [0])[0] for part in ("weights", "optimizer", "activations")]
        cells += [gib["phases"][phase] for phase in ("encode", "sample", "decode", "learn")]
        cells += [gib[total] for total in ("needed", "host", "node")]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, make in CHECKPOINTS.items():
            make(Path(name) / kind)
        for key in arguments.only:
            found[key] = foretold(CASES[key], Path(name))
            print(f"{key}: {found[key]['verdict']}", file=sys.stderr)
    write_results(arguments.out / "memory.json", {"estimated": found})
    print(table(found))


if __name__ == "__main__":
    main()
